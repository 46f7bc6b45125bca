"""The architectures, one small file each; `isthmus.zoo` is their index."""
