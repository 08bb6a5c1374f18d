"""One file a method: see ``ood_utils.gallery``."""
