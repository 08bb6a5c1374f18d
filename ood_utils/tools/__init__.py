"""Commands of the maintainers, outside the import path of users: pretraining, reference run, datasheet."""
