"""The Python API (docs/python.md): what ``import fedpeft`` offers, and what the commands call.

Nothing here prints unless asked, exits, or changes the process; whatever a user can cause is a ``FedpeftError`` with
the text that the command line shows. Each name is imported from its own module: a command pays for no other's.
"""
