"""What is taken from the two packages: chosen once by eye and by waveform, so that every run sees the same classes.

Left out are drawings (bee, cat), silent recordings (nandou, iguana, giraffe, wombat), things too thin or too small to
recognise (bassoon, scissors), and one of each pair that shares a recording: ram and mountain goat play the goat's,
the dromedary a faster camel, the beaver the badger's. Ram and dromedary still lend their pictures.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One class: cut-outs (`.png`) and recordings (`.ogg`) below the folder of stamps, space-separated, no suffix."""

    name: str
    pictures: str
    sounds: str


ENTRIES = (
    # The eight farm species that the held-out package has too.
    Entry("chicken", "animals/birds/hen animals/birds/rooster animals/birds/chicken_profile",
          "animals/birds/hen animals/birds/rooster"),
    Entry("cow", "animals/mammals/bovines/cow animals/mammals/bovines/cow_white animals/mammals/bovines/bull",
          "animals/mammals/bovines/cow animals/mammals/bovines/cow_white animals/mammals/bovines/bull"),
    Entry("dog", "animals/mammals/dogs/dog animals/mammals/dogs/dingo", "animals/mammals/dogs/dog"),
    Entry("duck", "animals/birds/duck animals/birds/drake", "animals/birds/duck animals/birds/drake"),
    Entry("horse", "animals/mammals/equines/horse", "animals/mammals/equines/horse"),
    Entry("owl", "animals/birds/owl", "animals/birds/owl"),
    Entry("pig", "animals/mammals/pig animals/mammals/pig_golden animals/mammals/pig_golden2",
          "animals/mammals/pig animals/mammals/pig_golden animals/mammals/pig_golden2"),
    Entry("sheep", "animals/mammals/bovines/sheep animals/mammals/bovines/sheep_lamb animals/mammals/bovines/ram",
          "animals/mammals/bovines/sheep animals/mammals/bovines/sheep_lamb"),
    # Twenty more, as different in look and sound as the package allows.
    Entry("bear", "animals/mammals/bears/bear animals/mammals/bears/european-bear", "animals/mammals/bears/bear"),
    Entry("camel", "animals/mammals/camel/camel animals/mammals/camel/dromedary", "animals/mammals/camel/camel"),
    Entry("chimpanzee", "animals/mammals/apes/chimp", "animals/mammals/apes/chimp"),
    Entry("crow", "animals/birds/crow", "animals/birds/crow"),
    Entry("dolphin", "animals/mammals/aquatic/dolphin", "animals/mammals/aquatic/dolphin"),
    Entry("donkey", "animals/mammals/equines/donkey animals/mammals/equines/donkey_eating",
          "animals/mammals/equines/donkey"),
    Entry("drum kit", "hobbies/music/percussion/drumkit", "hobbies/music/percussion/drumkit"),
    Entry("elephant", "animals/mammals/elephant", "animals/mammals/elephant"),
    Entry("fire truck", "vehicles/emergency/firetruck", "vehicles/emergency/firetruck"),
    Entry("frog", "animals/amphibians/frog animals/amphibians/frog-1", "animals/amphibians/frog"),
    Entry("goat", "animals/mammals/bovines/goat", "animals/mammals/bovines/goat"),
    Entry("goose", "animals/birds/gander", "animals/birds/gander"),
    Entry("grasshopper", "animals/insects/grasshopper", "animals/insects/grasshopper"),
    Entry("lion", "animals/mammals/cats/lion animals/mammals/cats/lion-2", "animals/mammals/cats/lion"),
    Entry("penguin", "animals/birds/penguin animals/birds/magellanic_penguin animals/birds/little-penguin",
          "animals/birds/penguin"),
    Entry("sea lion", "animals/mammals/aquatic/sea_lion", "animals/mammals/aquatic/sea_lion"),
    Entry("seagull", "animals/birds/seagull animals/birds/silver-gull", "animals/birds/seagull"),
    Entry("tiger", "animals/mammals/cats/tiger animals/mammals/cats/tiger_sumatran", "animals/mammals/cats/tiger"),
    Entry("turkey", "animals/birds/turkey", "animals/birds/turkey"),
    Entry("violin", "hobbies/music/string/violin", "hobbies/music/string/violin"),
)  # fmt: skip

# Photos without animals, by resource file and folder in it; paintings, faces and second views of a place are left out.
BACKGROUNDS = {
    "explore_monuments": "explore_monuments/resource",
    "clickgame": "clickgame/resource",
    "details": "details/resource/image",
}
NO_BACKGROUND = ("Gogh", "GizahPyramids", "Neuschwanstein_background", "TajMahal_background", "mountRushmore")

# The held-out photos and recordings: folder in explore_farm_animals.rcc, and the one recording with another name.
FARM = "explore_farm_animals/resource/animals"
FARM_SOUNDS = {"chicken": "chickens"}

# Hand-drawn outlines of the animals in those photos, in percent of width and height, so that held-out pictures are
# shown exactly as the stamps are: "x,y x,y ...". A second outline of a class is a second animal on the photo.
OUTLINES = {
    "chicken": (
        "10,18 8.5,20 8,24 7.5,27 9,31 8,37 6,45 5,55 4.5,61 5,67 7,71 10,74 16,74.5 20,68 21,58 21.5,47 20.5,39 "
        "18.5,34 17.5,26 15.5,22 12,20.5 11.5,18",
        "62,18 56.5,30 55,36 53.5,45 51,57 52,63 55,68 55.5,76 57,76 57,69 61.5,69 62,78 63.5,78 63,69 67,64 68,52 "
        "67,44 66,40 68,37 69.5,35 68,30 65,31 64,25",
    ),
    "cow": (
        "25.5,44 27,43.5 28,41 30,41 31.5,43.5 35,43.5 41,41 45,39.5 55,38.5 70,39.5 78,38.5 86,38.5 88.5,40 89.5,44 "
        "89.5,60 89.5,68 90,80 90,89 88,89.5 87.5,84 85.5,74 84,69 83,70 82,79 79,84 77,88 74.5,89 74,88 76.5,83 "
        "77.5,75 77,71 72,70 62,70 56,68.5 53,67 52.5,76 52.5,88 50,90 49,89 50,80 48.5,72 48,78 46.5,88 44,89.5 "
        "43.5,88 45,80 45,71 41,69 38.5,64 36,58 33.5,56 29,59 25.5,62 23,60.5 23.5,58 26,49",
    ),
    "dog": (
        "77,3.5 79,8 80,12.5 84,12.5 85.5,8 87,4 88.5,8 88,14 88,20 87.5,28 86,35 84.5,42 82,46 79.5,52 78,56 75.5,60 "
        "74,65 73.5,72 74,80 74.5,87 78,91 80.5,92.5 78,94 73.5,94.5 72,91 70,84 69,76 68.5,70 68,65 67,72 66,80 "
        "66.5,86 70,87.5 70.5,90 66,90 64,88 64,83 63,79 64,72 63.5,65 58,62 50,60.5 44,60.5 41,62.5 38.5,68 34,74 "
        "30.5,79 30,84 31.5,87 36,87.5 36,89 32.5,90 34,92.5 38,94 37,95 31,94.5 28.5,90 26.5,85 24,82 24.5,79 27,75 "
        "27,71 24,70 22,76 16,80 9,79 5,75 4,69 7,67.5 11,70.5 16,69 19.5,63 20.5,55 20.5,48 23,44 28,38 36,33 45,30 "
        "55,29.5 64,27.5 69,27.5 72,24 75,18 76,13 75,7",
    ),
    "duck": (
        "68,21.8 72,22 75,25 75.8,30 77,33 79,37.5 80,41 78,41.5 73.5,38 71,37 71,41 73.5,44 77,50 79.5,57 79,64 "
        "77,70 75,75 70,78.5 64,79.5 57,78.5 53.5,80 51.5,85 57,87.5 60,89.5 53,90 48.5,90 47,85 47,80.5 40,80.5 "
        "34.5,80 31,77 30,80 33,86 34,87.5 30,87.5 27,83 26,76 22,74 19.5,69 18.5,62 15,59 12,55 12.5,48.5 16,48.8 "
        "19,49 23,47.5 30,47 36,44 44,42.7 52,43 58,44.5 61.5,44.5 60.5,38 60.5,31 63,25",
    ),
    "horse": (
        "57,51 58,46 59,40 59.5,36.5 62,35.5 64.5,35.5 66,35.5 68,37 71.5,38.5 74.5,42 77,46 82,46.5 85,50 85.8,56 "
        "87,61 88.5,66 87.5,70 86,68 85,72 86,78 86.5,84 85,84 84,79 83.5,72 83,66 82,72 82.5,78 82,83.5 80.5,83.5 "
        "80.5,78 80.5,72 79.5,65 77,64.5 77,72 77.5,80 78,84 76.5,84 75.5,79 75.5,72 74.5,66 73,71 73.5,77 74,82 "
        "72.5,82 71.5,76 71,68 69.5,61 68.5,54 66,49 64.5,47 62,48.5 60.5,51.5 59,52.5",
    ),
    "owl": (
        "60,21.5 65,21 70,23.5 72.5,28 73.5,34 75,39 77,47 76.5,50 72,55 69,62 66,66 64,68 61.5,70 58.5,69 57,64 "
        "55,57 54,48 54.5,40 54,33 55,27 57,23",
    ),
    "pig": (
        "16.5,37 19,39 21,40.5 25,38 29,35 34,32.5 39,30.5 42,27 46,23.5 50,22.5 54,25 57,29 58,34 57.8,41 58,46 "
        "60,52 61,58 61.5,62 60.5,64 58.5,64 58,60 57,54 55.5,49 53.5,50 52,53 52,60 51.5,64 49,64 49,57 46,55.5 "
        "41.5,57 41.5,64 42,74 40,77 37,77 37.5,70 37,60 36,58.5 32.5,60 31,67 29,76 27.5,80 23.5,82 23,80 26,75 "
        "27.5,69 28,62 26,63 22,66 20,68.5 17,68 16,66 18,61 18,54 18.5,48 20,44 19.5,42",
    ),
    "sheep": (
        "42.5,14.5 45,14 50,15 51.5,12.5 55,12 58.5,13 61,12 64.5,11.8 64,14.5 62,17.5 64.5,22 66,28 68.5,35 70,43 "
        "71,50 70,57 68,63 64,65.5 60.5,66 60,73 59.5,81 60,86 57,87 56,84 57.5,76 56,66 53,67 52.5,74 52.5,82 "
        "52.5,88 50,89.5 48.5,88 49.5,80 49.5,72 48,69 44,68 42,65 40.5,66 39,72 38.5,80 38.5,87 36,88 34,84 34.5,82 "
        "36,74 36,66 34,62 32,66 30.5,70 29.5,76 28.5,84 28.5,90 26,91 25,87 24.5,84 26,76 26,68 24.5,64 23.5,55 "
        "23,46 23.5,37 25,28 27,23 31,20 38,19 45,18.5 47,19 44,18",
    ),
}
