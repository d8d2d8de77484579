"""The words of the shop: its category tree, what stands on each shelf, and how styles are named."""

from __future__ import annotations

from typing import NamedTuple

REGIONS = ("DE-BE", "DE-BY", "FR-IDF", "GB-LND", "NL-NH", "AT-9")  # ISO 3166-2


class Shelf(NamedTuple):
    """A leaf of the category tree."""

    root: str
    leaf: str
    nouns: tuple[str, ...]
    details: tuple[str, ...]
    price: float  # median
    period: float = 0.0  # days that a pack lasts; 0: bought once
    sensitive: str = ""  # what a purchase from here may give away


SHELVES = (
    Shelf("Food & Drink", "Coffee",
          ("Espresso Beans", "Filter Roast", "House Blend", "Single Origin Coffee", "Decaf Beans", "Cold Brew Pack"),
          ("from Huila", "from Sidamo", "washed", "dark roast", "light roast", "with cocoa notes"), 11.0, 14.0),
    Shelf("Food & Drink", "Tea",
          ("Green Tea", "Earl Grey", "Oolong", "Rooibos", "Mint Infusion", "Breakfast Tea"),
          ("loose leaf", "first flush", "in a tin", "with bergamot", "from Darjeeling", "caffeine free"), 9.0, 28.0),
    Shelf("Food & Drink", "Wine",
          ("Riesling", "Pinot Noir", "Rioja", "Chablis", "Cremant", "Primitivo"),
          ("old vines", "reserve", "from slate soil", "barrel aged", "estate bottled", "dry"), 14.0, 21.0),
    Shelf("Food & Drink", "Pantry",
          ("Olive Oil", "Sea Salt", "Spelt Pasta", "Tomato Passata", "Acacia Honey", "Porridge Oats"),
          ("cold pressed", "stone ground", "family pack", "from Puglia", "unsweetened", "in a jar"), 6.0, 18.0),
    Shelf("Food & Drink", "Chocolate",
          ("Dark Chocolate", "Nougat Bar", "Cocoa Powder", "Praline Box", "Milk Chocolate", "Truffles"),
          ("seventy percent", "with hazelnut", "with sea salt", "bean to bar", "with orange", "vegan"), 5.0),
    Shelf("Books", "Crime Novels",
          ("Detective Mystery", "Harbour Murder", "Cold Case", "Spy Thriller", "Courtroom Drama", "Village Crime"),
          ("first in the series", "hardback", "paperback", "with an inspector", "set in winter", "prize winner"), 13.0),
    Shelf("Books", "Cookery Books",
          ("Bread Baking Book", "Vegetable Recipes", "Pasta Handbook", "Pickling Guide", "Family Suppers", "Cake Book"),
          ("illustrated", "for weeknights", "for beginners", "with sixty recipes", "hardback", "by a chef"), 24.0),
    Shelf("Books", "Travel Books",
          ("Walking Guide", "City Atlas", "Island Journal", "Railway Journeys", "Alpine Map Set", "Desert Memoir"),
          ("with maps", "new edition", "paperback", "on foot", "by night train", "in photographs"), 17.0),
    Shelf("Books", "Picture Books",
          ("Bear Story", "Counting Book", "Bedtime Tales", "Dinosaur Book", "Moon Adventure", "Farm Animals"),
          ("from age three", "board book", "with flaps", "read aloud", "in rhyme", "large format"), 12.0),
    Shelf("Books", "Faith & Thought",
          ("Daily Meditations", "Essays on Belief", "Psalms", "Letters on Ethics", "Prayer Book", "Stoic Reader"),
          ("annotated", "new translation", "pocket edition", "clothbound", "with commentary", "collected"), 16.0, 0.0,
          "religion"),
    Shelf("Garden", "Seeds",
          ("Tomato Seeds", "Wildflower Mix", "Basil Seeds", "Sunflower Seeds", "Runner Beans", "Lettuce Seeds"),
          ("heirloom", "early variety", "for balconies", "bee friendly", "climbing", "slow bolting"), 4.0),
    Shelf("Garden", "Garden Tools",
          ("Hand Trowel", "Pruning Shears", "Digging Fork", "Watering Can", "Leaf Rake", "Garden Gloves"),
          ("ash handle", "stainless", "left handed", "with a long reach", "galvanised", "for roses"), 22.0),
    Shelf("Garden", "Pots & Planters",
          ("Terracotta Pot", "Window Box", "Hanging Planter", "Herb Trough", "Glazed Planter", "Seed Tray"),
          ("frost proof", "with saucer", "thirty centimetres", "self watering", "set of three", "for cacti"), 19.0),
    Shelf("Garden", "Bird Care",
          ("Nest Box", "Sunflower Hearts", "Bird Bath", "Fat Balls", "Peanut Feeder", "Robin Mix"),
          ("for tits", "squirrel proof", "winter feed", "no mess", "hanging", "refill bag"), 10.0, 20.0),
    Shelf("Home", "Candles",
          ("Beeswax Candle", "Scented Candle", "Tea Lights", "Dinner Candles", "Pillar Candle", "Lantern"),
          ("fig scent", "unscented", "forty hours", "with cedar", "set of four", "in glass"), 15.0),
    Shelf("Home", "Bedding",
          ("Linen Sheet", "Wool Blanket", "Feather Pillow", "Duvet Cover", "Cotton Quilt", "Pillowcase"),
          ("double size", "stonewashed", "all season", "undyed", "single size", "percale"), 58.0),
    Shelf("Home", "Kitchenware",
          ("Chef Knife", "Cast Iron Pan", "Mixing Bowl", "Chopping Board", "Stock Pot", "Pepper Mill"),
          ("carbon steel", "oak", "enamelled", "three litres", "stackable", "dishwasher safe"), 36.0),
    Shelf("Home", "Cleaning",
          ("Washing Powder", "Dish Soap", "Dishwasher Tabs", "Surface Cleaner", "Scrub Brush", "Laundry Refill"),
          ("fragrance free", "refill", "with citrus", "concentrated", "for wool", "plastic free"), 8.0, 30.0),
    Shelf("Music", "Vinyl Records",
          ("Jazz Quartet LP", "Folk Ballads LP", "Synth Album", "Soul Reissue", "Piano Preludes LP", "Live Recording"),
          ("gatefold", "remastered", "limited pressing", "mono", "double album", "with booklet"), 26.0),
    Shelf("Music", "Strings & Reeds",
          ("Guitar Strings", "Violin Strings", "Clarinet Reeds", "Ukulele Strings", "Bass Strings", "Rosin"),
          ("light gauge", "medium gauge", "phosphor bronze", "pack of ten", "gut core", "nylon"), 12.0, 35.0),
    Shelf("Music", "Sheet Music",
          ("Piano Album", "Cello Suites", "Guitar Method", "Choir Book", "Flute Duets", "Violin Studies"),
          ("urtext", "grade three", "with fingering", "for beginners", "complete", "easy arrangements"), 18.0),
    Shelf("Games", "Board Games",
          ("Strategy Game", "Family Game", "Dice Game", "Card Game", "Word Game", "Cooperative Game"),
          ("two players", "four players", "half an hour", "expansion", "travel edition", "from age ten"), 29.0),
    Shelf("Games", "Jigsaw Puzzles",
          ("Landscape Puzzle", "Map Puzzle", "Cat Puzzle", "Painting Puzzle", "Wooden Puzzle", "Train Puzzle"),
          ("thousand pieces", "five hundred pieces", "matt finish", "with poster", "round", "for families"), 17.0),
    Shelf("Games", "Model Kits",
          ("Sailing Ship Kit", "Glider Kit", "Steam Engine Kit", "Lighthouse Kit", "Racing Car Kit", "Tram Kit"),
          ("one to seventy-two", "pre-cut", "with paint", "no glue", "laser cut", "for experts"), 33.0),
    Shelf("Outdoors", "Cycling",
          ("Bicycle Bell", "Inner Tube", "Pannier Bag", "Chain Oil", "Front Light", "Cycling Gloves"),
          ("waterproof", "twenty-eight inch", "reflective", "rechargeable", "for city bikes", "for gravel"), 21.0),
    Shelf("Outdoors", "Running",
          ("Trail Shoes", "Running Socks", "Energy Gels", "Head Torch", "Running Vest", "Recovery Drink"),
          ("breathable", "half size up", "for marathons", "lightweight", "wide fit", "merino"), 28.0, 24.0),
    Shelf("Outdoors", "Climbing",
          ("Climbing Rope", "Chalk Bag", "Harness", "Carabiner Set", "Boulder Brush", "Quickdraws"),
          ("sixty metres", "dry treated", "for halls", "screw gate", "soft touch", "pack of six"), 41.0),
    Shelf("Outdoors", "Camping",
          ("Tunnel Tent", "Sleeping Bag", "Camp Stove", "Enamel Mug", "Folding Chair", "Dry Bag"),
          ("two person", "three season", "ultralight", "with pegs", "down filled", "compact"), 63.0),
    Shelf("Care", "Skin Care",
          ("Face Cream", "Hand Balm", "Sun Lotion", "Rose Toner", "Clay Mask", "Body Oil"),
          ("with almond", "for dry skin", "factor thirty", "unperfumed", "overnight", "in glass"), 16.0, 40.0),
    Shelf("Care", "Hair & Shave",
          ("Shampoo Bar", "Razor Blades", "Shaving Soap", "Hair Oil", "Beard Brush", "Conditioner"),
          ("for curls", "pack of ten", "with sandalwood", "sulphate free", "refill", "boar bristle"), 11.0, 32.0),
    Shelf("Care", "Remedies",
          ("Cough Syrup", "Vitamin Drops", "Sleep Drops", "Iron Tablets", "Herbal Lozenges", "Joint Balm"),
          ("sugar free", "for adults", "ninety days", "with thyme", "high strength", "gentle"), 13.0, 30.0, "health"),
    Shelf("Care", "Pet Food",
          ("Dog Biscuits", "Cat Kibble", "Dog Dinner Tins", "Cat Pouches", "Rabbit Hay", "Fish Flakes"),
          ("grain free", "with salmon", "for seniors", "for puppies", "large bag", "with turkey"), 18.0, 16.0),
)  # fmt: skip

ROOTS = tuple(dict.fromkeys(shelf.root for shelf in SHELVES))

# One row a dimension of style: the words of its negative pole, then those of its positive one.
STYLE_WORDS = (
    (("Classic", "Heritage"), ("Modern", "Contemporary")),
    (("Gentle", "Mild"), ("Bold", "Intense")),
    (("Plain", "Quiet"), ("Bright", "Colourful")),
    (("Rustic", "Handmade"), ("Refined", "Polished")),
    (("Pocket", "Little"), ("Generous", "Grand")),
    (("Wild", "Organic"), ("Precise", "Studio")),
    (("Northern", "Alpine"), ("Southern", "Coastal")),
    (("Serious", "Expert"), ("Playful", "Cheerful")),
)
STYLES = len(STYLE_WORDS)

MAKERS = (
    ("Alder", "Birch", "Cobalt", "Dunmore", "Ember", "Fairlie", "Grove", "Hazel", "Indigo", "Juniper", "Keel", "Larch",
     "Marlow", "Nettle", "Orchid", "Pepper", "Quarry", "Rowan", "Saffron", "Thistle", "Umber", "Vale", "Wick", "Yew"),
    ("Finch", "Daughters", "Sons", "Bell", "Crane", "Drake", "Elm", "Forge", "Gale", "Hart", "Ives", "Jay",
     "Knot", "Lane", "Moss", "North", "Oak", "Pike", "Quill", "Reed", "Stone", "Tern", "Vane", "Wren"),
)  # fmt: skip
