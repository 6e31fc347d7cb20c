"""Administration: what an operator can ask of a coordinator, on its machine or over HTTPS, and a page that asks it.

One table (``routes``) says who may ask what; the command line on the coordinator's machine calls the same functions as
the API does. The API has a port of its own and is off without one (``Settings.admin_port``).
"""
