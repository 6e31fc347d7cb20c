"""A device's side of a round: ``device`` answers, ``accepting`` checks, ``records`` is what is kept."""
