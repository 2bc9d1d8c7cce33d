"""Schemes that turn an image into bytes and back: the only place where bytes, networks and mathematics meet."""
