"""Images to run and to measure with, made from Debian packages, PyPI wheels and generated data; cached as OCI layouts."""
