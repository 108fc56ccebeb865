"""Child processes that end with the command that started them."""
