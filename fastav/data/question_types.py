"""The nine types of question that MUSIC-AVQA has; what a clip's ``question_type`` is an index of."""

#: Pairs of group (what must be looked at or listened to) and kind, in the order in which scores are published.
QUESTION_TYPES = (
    ("Audio", "Counting"),
    ("Audio", "Comparative"),
    ("Visual", "Counting"),
    ("Visual", "Location"),
    ("Audio-Visual", "Existential"),
    ("Audio-Visual", "Counting"),
    ("Audio-Visual", "Location"),
    ("Audio-Visual", "Comparative"),
    ("Audio-Visual", "Temporal"),
)
