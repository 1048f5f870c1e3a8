"""What castoff is measured with: ``python -m bench.images`` makes images, ``python -m bench`` measures."""
