"""An independent reader and checker of ext4 images: see :mod:`castoff.ext4.check.filesystem`."""
