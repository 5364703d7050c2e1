"""The run on disk: the only door between what records and what judges. Neither torch nor pandas is imported here."""
