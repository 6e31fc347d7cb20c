"""run.toml as frozen models: the only place where a default lives.

One file makes a ``RunConfig``. ``Performance`` must not change what is learnt or promised; everything
else is part of the run's identity. Validation is strict (no coercion of "3" to 3) and an unknown key is
an error; ``fedpeft.config.load`` turns pydantic's findings into ``Problem`` lists. Cross-field checks
live in ``fedpeft.config.check``; [adapter] and its methods in ``fedpeft.config.adapter``.
"""
