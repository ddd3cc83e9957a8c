"""Event localisation on clips composed from real pictures and sounds, with real frozen backbones."""
