"""Networks: each file holds a frozen configuration and the module built from it."""
