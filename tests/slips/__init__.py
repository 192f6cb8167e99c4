"""Slips of the user's own hand: none destroys a file that we did not make, none gives another model than asked for."""
