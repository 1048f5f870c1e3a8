"""castoff: OCI images become bootable root filesystems without being unpacked, and run as microVMs."""
