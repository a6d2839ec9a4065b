"""What the short texts of ``stories.py`` are about: people, animals, trades, towns, and words of other languages.

Tables only. Every fact in them is stated the same way wherever it comes up, so a model can learn it.
"""

from __future__ import annotations

from typing import NamedTuple


class Person(NamedTuple):
    """A name with the pronouns that go with it."""

    name: str
    they: str
    them: str
    their: str


class Animal(NamedTuple):
    """An animal, what its young one is called, the sound it makes, what it eats, where it lives, and its legs."""

    name: str
    young: str
    sound: str
    food: str
    home: str
    legs: int


class Trade(NamedTuple):
    """Somebody's work: the name of the trade, where it is done, with what, and what comes out of it."""

    name: str
    place: str
    tool: str
    product: str


class Country(NamedTuple):
    """A country, its capital, and its language."""

    name: str
    capital: str
    language: str


PEOPLE = [
    *(Person(name, "she", "her", "her") for name in (
        "Anna", "Clara", "Emma", "Grace", "Ida", "Julia", "Lena", "Maria", "Nora", "Olga", "Rosa", "Sophie", "Vera",
        "Zoe",
    )),
    *(Person(name, "he", "him", "his") for name in (
        "Adam", "Ben", "David", "Felix", "George", "Hugo", "Jack", "Leo", "Max", "Oscar", "Paul", "Sam", "Tom",
        "Victor",
    )),
]  # fmt: skip

ANIMALS = [
    Animal("dog", "puppy", "barks", "meat", "kennel", 4),
    Animal("cat", "kitten", "meows", "fish", "house", 4),
    Animal("cow", "calf", "moos", "grass", "barn", 4),
    Animal("horse", "foal", "neighs", "hay", "stable", 4),
    Animal("sheep", "lamb", "bleats", "grass", "field", 4),
    Animal("pig", "piglet", "grunts", "corn", "sty", 4),
    Animal("duck", "duckling", "quacks", "bread", "pond", 2),
    Animal("hen", "chick", "clucks", "grain", "yard", 2),
    Animal("owl", "owlet", "hoots", "mice", "tree", 2),
    Animal("frog", "tadpole", "croaks", "flies", "pond", 4),
    Animal("bear", "cub", "growls", "honey", "cave", 4),
    Animal("wolf", "pup", "howls", "meat", "forest", 4),
    Animal("lion", "cub", "roars", "meat", "savanna", 4),
    Animal("goat", "kid", "bleats", "leaves", "shed", 4),
    Animal("bee", "larva", "buzzes", "nectar", "hive", 6),
    Animal("mouse", "pup", "squeaks", "cheese", "hole", 4),
]

TRADES = [
    Trade("baker", "bakery", "oven", "bread"),
    Trade("farmer", "farm", "plough", "wheat"),
    Trade("fisher", "harbour", "net", "fish"),
    Trade("painter", "studio", "brush", "pictures"),
    Trade("carpenter", "workshop", "saw", "tables"),
    Trade("smith", "forge", "hammer", "horseshoes"),
    Trade("tailor", "shop", "needle", "coats"),
    Trade("gardener", "garden", "spade", "flowers"),
    Trade("teacher", "school", "blackboard", "lessons"),
    Trade("cook", "kitchen", "pan", "soup"),
    Trade("miller", "mill", "millstone", "flour"),
    Trade("potter", "pottery", "wheel", "bowls"),
    Trade("writer", "library", "pen", "books"),
    Trade("doctor", "hospital", "thermometer", "medicine"),
]

COUNTRIES = [
    Country("France", "Paris", "French"),
    Country("Germany", "Berlin", "German"),
    Country("Spain", "Madrid", "Spanish"),
    Country("Italy", "Rome", "Italian"),
    Country("Portugal", "Lisbon", "Portuguese"),
    Country("Poland", "Warsaw", "Polish"),
    Country("Greece", "Athens", "Greek"),
    Country("Norway", "Oslo", "Norwegian"),
    Country("Sweden", "Stockholm", "Swedish"),
    Country("Denmark", "Copenhagen", "Danish"),
    Country("Japan", "Tokyo", "Japanese"),
    Country("Egypt", "Cairo", "Arabic"),
]

TRANSLATIONS = {
    "French": {
        "the house": "la maison", "the bread": "le pain", "the water": "l'eau", "the cat": "le chat",
        "the dog": "le chien", "the tree": "l'arbre", "the school": "l'\u00e9cole", "the day": "le jour",
        "the night": "la nuit", "the friend": "l'ami", "the book": "le livre", "the sun": "le soleil",
    },
    "German": {
        "the house": "das Haus", "the bread": "das Brot", "the water": "das Wasser", "the cat": "die Katze",
        "the dog": "der Hund", "the tree": "der Baum", "the school": "die Schule", "the day": "der Tag",
        "the night": "die Nacht", "the friend": "der Freund", "the book": "das Buch", "the sun": "die Sonne",
    },
    "Spanish": {
        "the house": "la casa", "the bread": "el pan", "the water": "el agua", "the cat": "el gato",
        "the dog": "el perro", "the tree": "el \u00e1rbol", "the school": "la escuela", "the day": "el d\u00eda",
        "the night": "la noche", "the friend": "el amigo", "the book": "el libro", "the sun": "el sol",
    },
    "Italian": {
        "the house": "la casa", "the bread": "il pane", "the water": "l'acqua", "the cat": "il gatto",
        "the dog": "il cane", "the tree": "l'albero", "the school": "la scuola", "the day": "il giorno",
        "the night": "la notte", "the friend": "l'amico", "the book": "il libro", "the sun": "il sole",
    },
}  # fmt: skip

OPPOSITES = [
    ("hot", "cold"), ("big", "small"), ("old", "young"), ("fast", "slow"), ("high", "low"), ("dry", "wet"),
    ("light", "dark"), ("full", "empty"), ("loud", "quiet"), ("long", "short"), ("hard", "soft"), ("early", "late"),
    ("rich", "poor"), ("strong", "weak"), ("open", "closed"), ("sweet", "bitter"),
]  # fmt: skip

COLOURS = ["red", "blue", "green", "yellow", "white", "black", "brown", "grey", "golden", "silver"]
SIZES = ["small", "big", "tiny", "huge", "long", "round", "heavy", "old", "new"]
FEELINGS = ["happy", "sad", "tired", "proud", "afraid", "angry", "curious", "lonely", "surprised", "calm"]
THINGS = [
    "key", "lamp", "basket", "box", "ball", "boat", "book", "bell", "coat", "cup", "drum", "flute", "hat", "kite",
    "letter", "map", "mirror", "ring", "rope", "spoon", "stone", "watch", "wagon", "shell",
]  # fmt: skip
PLACES = [
    "in the forest", "by the river", "on the hill", "at the market", "near the old mill", "in the village",
    "by the sea", "under the bridge", "in the garden", "at the edge of the lake", "behind the church", "in the valley",
]  # fmt: skip
HIDING_PLACES = [
    "under the bed", "behind the door", "in the well", "on the roof", "under a leaf", "in the cellar",
    "behind the stove", "inside a hollow tree", "on the top shelf", "between two stones",
]  # fmt: skip
FRUITS = ["apples", "pears", "plums", "cherries", "nuts", "lemons", "grapes", "carrots", "eggs", "onions", "potatoes"]
SEASONS = {
    "spring": ("the first flowers open", "warm rain falls"),
    "summer": ("the days are long", "the grass is dry"),
    "autumn": ("the leaves turn red", "the wind is strong"),
    "winter": ("the snow is deep", "the pond is frozen"),
}
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
]  # fmt: skip
NUMBERS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
]  # fmt: skip
WEATHER = [
    "The sun was shining.", "It was raining a little.", "There was fog everywhere.", "A cold wind blew from the north.",
    "Not a cloud was in the sky.", "It had snowed all night.", "Thunder could be heard far away.",
]  # fmt: skip
PROVERBS = [
    "A good deed is never lost.", "Who helps others is helped in turn.", "What you give comes back to you.",
    "Two can do more than one.",
]  # fmt: skip
WARNINGS = [
    "Who shuts the door will find it shut.", "A closed hand gets nothing.", "Who eats alone is hungry alone.",
]  # fmt: skip
