"""The provider that asks a running containerd: pull, unpack, snapshot. The baseline, and the fallback."""
