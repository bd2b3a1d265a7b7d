#include "stories/lexicon.h"

#include <array>
#include <string>

#include "base/error.h"

namespace mixtral::stories {
namespace {

using Names = std::string_view;

constexpr Names kGirls[] = {
    "Mia",   "Anna",  "Lily",  "Rosa",  "Nora",   "Ella",   "Ida",   "Clara", "Tess",   "Ruby",
    "Maya",  "Zoe",   "Hana",  "Leila", "Amina",  "Priya",  "Sofia", "Greta", "Ines",   "Freya",
    "Molly", "Poppy", "Daisy", "Hazel", "Ivy",    "Kate",   "Lucy",  "Nina",  "Olga",   "Pia",
    "Rita",  "Sara",  "Tilda", "Una",   "Vera",   "Wanda",  "Yara",  "Zara",  "Bella",  "Carmen",
    "Dora",  "Edie",  "Fern",  "Gwen",  "Heidi",  "Jana",   "Kira",  "Lena",  "Mei",    "Nell",
    "Opal",  "Petra", "Rhea",  "Suki",  "Thea",   "Willa",  "Alma",  "Beth",  "Cora",   "Elsie",
    "Flora", "Grace", "Holly", "Jade",  "Lottie", "Martha", "Olive", "Paula", "Rachel", "Tara"};

constexpr Names kBoys[] = {
    "Tom",    "Ben",  "Sam",   "Max",   "Leo",   "Finn",   "Jack",  "Oscar", "Hugo",  "Ravi",
    "Omar",   "Kofi", "Luca",  "Nico",  "Otto",  "Paul",   "Theo",  "Toby",  "Will",  "Yusuf",
    "Adam",   "Axel", "Bruno", "Caleb", "Dan",   "Eli",    "Felix", "Gus",   "Henry", "Ian",
    "Jonas",  "Karl", "Liam",  "Milo",  "Ned",   "Owen",   "Pete",  "Rafi",  "Simon", "Tariq",
    "Victor", "Walt", "Zack",  "Arlo",  "Boris", "Colin",  "Dylan", "Emil",  "Frank", "George",
    "Harry",  "Ivan", "Joel",  "Kenji", "Lars",  "Mateo",  "Noah",  "Piet",  "Ross",  "Silas",
    "Ted",    "Umar", "Vince", "Wilf",  "Yann",  "Albert", "Basil", "Cyril", "Dev",   "Erik"};

constexpr Names kSurnames[] = {
    "Hale",      "Brook",  "Finch", "Marsh", "Penny", "Stone", "Wells", "Moss",  "Reed",  "Lamb",
    "Pike",      "Rowe",   "Tully", "Vane",  "Webb",  "Quill", "Bloom", "Dove",  "Fenn",  "Gale",
    "Hobbs",     "Ives",   "Jolly", "Kemp",  "Locke", "Nash",  "Oakes", "Potts", "Snow",  "Thorn",
    "Underhill", "Winter", "Yates", "Ash",   "Bell",  "Cole",  "Dunn",  "Elm",   "Frost", "Grove"};

constexpr Names kAnimalChildren[] = {"Pip",     "Dot",    "Nib",     "Tansy",  "Bramble",  "Moss",
                                     "Clover",  "Fidget", "Russet",  "Sorrel", "Tuppence", "Bean",
                                     "Thistle", "Minnow", "Acorn",   "Button", "Fennel",   "Wren",
                                     "Pepper",  "Nutmeg", "Comfrey", "Teasel", "Barley",   "Plum"};

constexpr SpeciesKind kSpecies[] = {{"rabbit", "Hare"},   {"mouse", "Mole"},    {"fox", "Badger"},
                                    {"squirrel", "Owl"},  {"hedgehog", "Toad"}, {"otter", "Heron"},
                                    {"mole", "Vole"},     {"beaver", "Bear"},   {"duck", "Goose"},
                                    {"bear cub", "Raven"}};

constexpr PlaceKind kPlaces[] = {
    {"home", "at home", "home", Zone::house, kIndoors,
     "under the bed|behind the curtain|on the windowsill|under a cushion",
     "a kettle was singing on the stove",
     "to eat lunch|to fetch a coat|to have a rest|to look for a book"},
    {"the kitchen", "in the kitchen", "to the kitchen", Zone::house, kIndoors,
     "under the table|behind the bread bin|on the windowsill|beside the stove",
     "something good was bubbling on the stove",
     "to eat lunch|to bake biscuits|to get a drink of water"},
    {"the attic", "in the attic", "up to the attic", Zone::house, kIndoors,
     "behind an old trunk|under a dusty sheet|on top of a pile of books|in a corner",
     "the dust danced in the light", "to look for old toys|to hide from the rain|to read in peace"},
    {"the cellar", "in the cellar", "down to the cellar", Zone::house, kIndoors,
     "behind the apple barrels|on the lowest shelf|under the stairs", "it was cool and dark",
     "to fetch potatoes|to look for the cat|to get some apples"},
    {"the garden", "in the garden", "into the garden", Zone::house, kOpen,
     "under the rose bush|behind the watering can|among the beans|beside the gate",
     "the bees were humming", "to water the beans|to pick flowers|to sit in the sun"},
    {"the shed", "in the shed", "to the shed", Zone::house, kIndoors,
     "behind the rakes|under an old sack|on a high shelf", "it smelled of earth and rope",
     "to fetch a hammer|to look for string|to mend a chair"},
    {"the bedroom", "in the bedroom", "to the bedroom", Zone::house, kIndoors,
     "under the bed|behind the curtain|under a pillow|on top of the cupboard",
     "the sun fell across the floor", "to have a rest|to fetch a coat|to make the bed"},
    {"the market", "at the market", "to the market", Zone::village, kOpen,
     "under a fruit stall|behind the barrels|beside the flower cart|under an empty crate",
     "the stalls were piled high with fruit", "to buy eggs|to buy carrots|to look at the goats"},
    {"the bakery", "at the bakery", "to the bakery", Zone::village, kIndoors,
     "under the counter|beside the door|behind the flour sacks", "the air smelled of warm bread",
     "to buy bread|to buy rolls|to warm up by the oven"},
    {"the school", "at the school", "to the school", Zone::village, kIndoors,
     "under a desk|beside the blackboard|on the steps|behind the door",
     "the windows were painted with flowers",
     "to learn to read|to practise a song|to meet the teacher"},
    {"the library", "in the library", "to the library", Zone::village, kIndoors,
     "between two books|under a chair|on the window seat|behind the tall shelf",
     "everyone spoke in whispers", "to borrow a book|to look at the maps|to read about whales"},
    {"the village square", "in the village square", "to the village square", Zone::village, kOpen,
     "beside the fountain|under a bench|behind the statue", "the pigeons walked about like old men",
     "to hear the band|to meet a friend|to feed the pigeons"},
    {"the mill", "at the mill", "to the mill", Zone::village, kIndoors,
     "behind the grain sacks|under the wheel|beside the steps",
     "the great wheel turned and splashed",
     "to buy flour|to see the great wheel|to help the miller"},
    {"the forge", "at the forge", "to the forge", Zone::village, kIndoors,
     "behind the coal bucket|beside the anvil|under the bench", "the hammer rang like a bell",
     "to watch the fire|to have a gate mended|to see the horses"},
    {"the toy shop", "at the toy shop", "to the toy shop", Zone::village, kIndoors,
     "under the counter|behind a row of puppets|in the window",
     "a row of puppets smiled in the window",
     "to see the puppets|to look in the window|to ask for glue"},
    {"the workshop", "in the workshop", "to the workshop", Zone::village, kIndoors,
     "under the workbench|behind the planks|in a heap of wood shavings",
     "the floor was soft with wood shavings",
     "to ask for nails|to watch the carpenter|to sweep the floor"},
    {"the station", "at the station", "to the station", Zone::village, kIndoors,
     "under a bench|beside the clock|behind the luggage cart", "a train was puffing softly",
     "to watch the trains|to meet an aunt|to look at the big clock"},
    {"the park", "in the park", "to the park", Zone::village, kOpen,
     "under a bench|behind the swings|beside the bandstand|under a chestnut tree",
     "the chestnut trees whispered", "to play on the grass|to listen to the birds|to walk the dog"},
    {"the post office", "at the post office", "to the post office", Zone::village, kIndoors,
     "under the counter|beside the scales|behind a pile of parcels",
     "parcels of every size stood in rows", "to buy a stamp|to send a letter|to fetch a parcel"},
    {"the well", "by the well", "to the well", Zone::village, kOpen,
     "behind the bucket|beside the old stone wall|under the ivy",
     "the water far below was very still", "to fetch water|to make a wish|to cool down"},
    {"the playground", "at the playground", "to the playground", Zone::village, kOpen,
     "under the slide|beside the swings|behind the hedge", "the swings creaked in the wind",
     "to play on the swings|to climb the ropes|to meet the others"},
    {"the forest", "in the forest", "into the forest", Zone::nature, kWild,
     "under a fern|beside a fallen log|between two roots|behind a mossy stone",
     "the light came down green through the leaves",
     "to look for mushrooms|to gather wood|to pick berries"},
    {"the meadow", "in the meadow", "to the meadow", Zone::nature, kWild,
     "among the daisies|in the long grass|beside the fence", "the grass was full of crickets",
     "to count the sheep|to look for clover|to chase butterflies"},
    {"the hill", "on the hill", "up the hill", Zone::nature, kWild,
     "beside a thorn bush|behind a grey rock|in the heather",
     "the whole village lay below like a toy",
     "to see the view|to fly like a bird|to look for the first star"},
    {"the orchard", "in the orchard", "to the orchard", Zone::nature, kOpen,
     "under an apple tree|beside a ladder|behind a basket", "the branches hung low",
     "to pick apples|to rest in the shade|to see the bees"},
    {"the farm", "at the farm", "to the farm", Zone::nature, kOpen,
     "behind the hay|beside the trough|under the cart", "the hens were chatting in the yard",
     "to feed the hens|to buy milk|to pat the cows"},
    {"the old barn", "in the old barn", "to the old barn", Zone::nature, kIndoors,
     "in the straw|behind the ladder|under a broken wheel", "swallows flew in and out",
     "to jump in the straw|to see the swallows|to hide from the rain"},
    {"the cave", "in the cave", "to the cave", Zone::nature, kIndoors,
     "behind a stone|on a dry ledge|in a crack in the wall", "every step made an echo",
     "to hear the echo|to look for bats|to draw on the walls"},
    {"the harbour", "at the harbour", "to the harbour", Zone::water, kOpen,
     "behind a heap of nets|under an upturned boat|beside the ropes|behind a barrel",
     "the boats bumped gently together", "to watch the boats|to buy fish|to wait for the ferry"},
    {"the beach", "on the beach", "down to the beach", Zone::water, kOpen,
     "beside a rock pool|under some seaweed|behind a dune", "the waves rolled in one after another",
     "to build a sandcastle|to look for crabs|to listen to the waves"},
    {"the river", "by the river", "down to the river", Zone::water, kOpen,
     "in the reeds|under the bridge|behind a willow", "the water chuckled over the stones",
     "to catch fish|to build a dam|to skip pebbles"},
    {"the pond", "by the pond", "to the pond", Zone::water, kOpen,
     "in the reeds|beside the jetty|under a willow", "the ducks were paddling in a row",
     "to feed the ducks|to look for frogs|to watch the swans"},
    {"the lighthouse", "at the lighthouse", "to the lighthouse", Zone::water, kIndoors,
     "on the winding stairs|behind the lamp|beside the door", "gulls wheeled around the tower",
     "to see the great lamp|to look out for ships|to climb the stairs"},
    {"the lake", "by the lake", "down to the lake", Zone::water, kOpen,
     "beside a rowing boat|under a pine tree|among the pebbles", "the water was as smooth as glass",
     "to swim|to row a boat|to wash a muddy coat"},
};

constexpr std::string_view kBright = "red|blue|green|yellow|orange|purple|white";
constexpr std::string_view kCloth = "red|blue|green|yellow|grey|brown|purple|white|pink";
constexpr std::string_view kMetal = "silver|golden|brass";

constexpr ThingKind kThings[] = {
    {"kite", kSkill | kToy | kMade, kBright, "paper|big|silk"},
    {"ball", kSkill | kToy | kMade, kBright, "rubber|little|bouncy"},
    {"drum", kSkill | kToy | kMusic | kMade, kBright, "tin|little|loud"},
    {"whistle", kSkill | kToy | kMusic | kTreasure | kMade, "silver|red|green|yellow",
     "tin|wooden|little"},
    {"toy boat", kFragile | kToy | kMade, kBright, "wooden|little|painted"},
    {"toy train", kFragile | kToy | kMade, kBright, "wooden|tin|little"},
    {"rocking horse", kToy | kMade, "white|brown|grey|black", "wooden|old"},
    {"spinning top", kSkill | kFragile | kToy | kMade, kBright, "wooden|little|striped"},
    {"marble", kToy | kTreasure, kBright, "glass|shiny|little"},
    {"music box", kFragile | kTreasure | kMusic | kMade, "blue|red|black|white", "wooden|old|tiny"},
    {"teddy bear", kToy | kTreasure, "brown|white|grey|black", "old|soft|one-eyed"},
    {"doll", kToy | kTreasure | kMade, "", "rag|wooden|old|little"},
    {"puppet", kSkill | kFragile | kToy | kMade, kBright, "wooden|cloth|funny"},
    {"paint box", kToy | kMade, "blue|red|black|white", "wooden|new|tin"},
    {"picture book", kToy | kTreasure | kMade, kBright, "old|big|thin"},
    {"notebook", kTreasure | kMade, "red|blue|green|black|brown", "little|thick|new"},
    {"flute", kSkill | kFragile | kMusic | kTreasure | kMade, "silver|white|brown",
     "wooden|old|thin"},
    {"compass", kTreasure | kTool | kMade, kMetal, "old|round|little"},
    {"lantern", kFragile | kTool | kMade, "red|green|black|yellow|blue", "tin|old|little"},
    {"key", kTreasure | kTool, kMetal, "old|rusty|tiny"},
    {"ring", kTreasure | kMade, kMetal, "thin|old|plain"},
    {"button", kTreasure, kBright, "shiny|round|big"},
    {"bell", kTreasure | kMusic | kMade, kMetal, "little|round|old"},
    {"ribbon", kTreasure | kWear, kCloth, "silk|long|velvet"},
    {"scarf", kWear | kMade, kCloth, "woollen|long|warm|striped"},
    {"hat", kWear | kMade, kCloth, "straw|woollen|floppy"},
    {"cap", kWear, kCloth, "woollen|old|little"},
    {"glove", kWear, kCloth, "woollen|warm|knitted"},
    {"mittens", kWear | kMade, kCloth, "woollen|thick|warm", true},
    {"boots", kWear, "red|blue|yellow|green|black|brown", "rubber|old|heavy", true},
    {"umbrella", kReach | kTool | kWear, kCloth, "big|old|striped"},
    {"blanket", kBuild | kReach | kTool | kMade, kCloth, "woollen|soft|old|thick"},
    {"basket", kGrow | kReach | kVessel | kTool | kMade, "brown|white|yellow", "round|big|willow"},
    {"bucket", kBuild | kGrow | kReach | kVessel | kTool, "red|blue|yellow|green", "tin|old|big"},
    {"jar", kGrow | kFragile | kVessel | kMade, "blue|green|brown|white", "glass|clay|little"},
    {"rope", kBuild | kReach | kTool | kMade, "brown|white|yellow", "long|strong|thick"},
    {"net", kReach | kTool | kMade, "green|brown|white", "little|old|fishing"},
    {"spade", kGrow | kReach | kTool | kMade, "red|blue|green|black", "little|iron|old"},
    {"rake", kGrow | kTool | kMade, "red|green|brown", "old|wooden|little"},
    {"watering can", kGrow | kTool | kMade | kVessel, "red|blue|green|yellow", "tin|little|old"},
    {"saw", kBuild | kTool | kMade, "", "old|little|sharp"},
    {"box of nails", kBuild | kTool | kMade, "", "big|little|heavy"},
    {"ladder", kBuild | kReach | kTool, "white|green|brown", "long|wooden|old"},
    {"hammer", kBuild | kTool | kMade, "", "heavy|little|iron"},
    {"clock", kFragile | kTreasure | kMade, "brown|white|black|blue", "old|little|wooden"},
    {"cup", kFragile | kVessel | kMade, kBright, "tin|clay|little|china"},
    {"teapot", kFragile | kVessel | kMade, "blue|white|brown|green", "old|china|round"},
    {"plate", kFragile | kVessel | kMade, "blue|white|yellow|green", "china|clay|big"},
    {"candle", kTool | kMade, "white|yellow|red|green", "tall|thick|little"},
    {"feather", kNature | kTreasure, "white|grey|blue|black|brown", "long|soft"},
    {"shell", kNature | kTreasure, "white|pink|yellow|grey", "curly|shiny|little"},
    {"stone", kNature | kTreasure, "white|black|grey|green", "smooth|round|flat"},
    {"pine cone", kNature, "brown", "big|perfect"},
    {"chestnut", kNature, "brown", "shiny|fat"},
    {"apple", kFood | kNature, "red|green|yellow", "big|shiny|sweet"},
    {"pear", kFood, "green|yellow|brown", "ripe|big|sweet"},
    {"plum", kFood, "purple|red|yellow", "ripe|sweet|fat"},
    {"loaf of bread", kFood | kMade, "brown|white|golden", "warm|fresh|round"},
    {"jar of honey", kFood | kMade, "", "big|little"},
    {"pot of jam", kFood | kMade, "", "big|little"},
    {"cherry cake", kFood | kMade, "", "round|little|warm"},
    {"cheese", kFood | kMade, "white|yellow|orange", "round|little"},
    {"pie", kFood | kMade, "brown|golden", "warm|big|round"},
    {"bun", kFood | kMade, "brown|golden|white", "warm|sticky|sweet"},
    {"letter", kTreasure, "white|blue|yellow", "long|folded|secret"},
    {"map", kTreasure | kTool, "yellow|brown|white", "old|torn|folded"},
};

constexpr Chore kBakerChores[] = {{"sweep the floor", "swept every corner of the floor"},
                                  {"knead the dough", "kneaded the dough until it was soft"},
                                  {"carry in the firewood", "carried in the firewood, log by log"},
                                  {"wash the baking tins", "washed a tall tower of baking tins"}};
constexpr Chore kFisherChores[] = {{"untangle the nets", "untangled the nets, knot by knot"},
                                   {"scrub the deck", "scrubbed the deck until it shone"},
                                   {"coil the ropes", "coiled all the ropes into neat rings"},
                                   {"sort the fish", "sorted the fish, big ones and small ones"}};
constexpr Chore kFarmerChores[] = {{"feed the hens", "fed the hens, even the cross one"},
                                   {"gather the eggs", "gathered the eggs without breaking one"},
                                   {"stack the hay", "stacked the hay as high as the door"},
                                   {"dig up the potatoes", "dug up a whole row of potatoes"}};
constexpr Chore kGardenerChores[] = {{"water the roses", "watered the roses, one by one"},
                                     {"pull up the weeds", "pulled up weeds until dinner time"},
                                     {"rake the leaves", "raked the leaves into a golden heap"},
                                     {"plant the bulbs", "planted a long row of bulbs"}};
constexpr Chore kCarpenterChores[] = {
    {"sweep up the shavings", "swept up all the shavings"},
    {"sand the planks", "sanded the planks until they were smooth"},
    {"sort the nails", "sorted the nails into little boxes"},
    {"hold the boards", "held the boards steady all morning"}};
constexpr Chore kSmithChores[] = {{"pump the bellows", "pumped the bellows until the fire roared"},
                                  {"sort the horseshoes", "sorted the horseshoes by size"},
                                  {"fetch water for the tub", "fetched six buckets of water"}};
constexpr Chore kLibrarianChores[] = {
    {"dust the shelves", "dusted shelf after shelf"},
    {"put the books in order", "put the books in order from A to Z"},
    {"mend the torn pages", "mended the torn pages with paste"}};
constexpr Chore kShopChores[] = {{"polish the window", "polished the window until it gleamed"},
                                 {"unpack the boxes", "unpacked box after box"},
                                 {"count the buttons", "counted three hundred and twelve buttons"},
                                 {"tidy the shelves", "tidied the shelves from top to bottom"}};
constexpr Chore kBeeChores[] = {
    {"label the jars", "wrote a neat label for every jar"},
    {"plant clover for the bees", "planted a patch of clover for the bees"},
    {"wash the honey pots", "washed all the sticky honey pots"}};
constexpr Chore kPostChores[] = {{"sort the letters", "sorted the letters, street by street"},
                                 {"carry the parcels", "carried parcels up and down the street"},
                                 {"stick on the stamps", "stuck on a hundred stamps"}};
constexpr Chore kMillerChores[] = {
    {"fill the sacks", "filled sack after sack with flour"},
    {"sweep the mill floor", "swept the mill floor clean"},
    {"chase the sparrows from the grain", "chased the sparrows from the grain"}};
constexpr Chore kPotterChores[] = {
    {"stir the clay", "stirred the clay until it was smooth"},
    {"paint the cups", "painted a blue line around each cup"},
    {"carry the pots to the kiln", "carried the pots very carefully"}};
constexpr Chore kTailorChores[] = {{"pick up the pins", "picked up every last pin"},
                                   {"wind the wool", "wound the wool into round balls"},
                                   {"fold the cloth", "folded the cloth into straight piles"}};
constexpr Chore kKeeperChores[] = {
    {"polish the great lamp", "polished the great lamp"},
    {"carry oil up the stairs", "carried oil up all the winding stairs"},
    {"paint the railing", "painted the railing white"}};
constexpr Chore kClockChores[] = {{"wind the clocks", "wound every clock on the wall"},
                                  {"dust the tiny wheels", "dusted the tiny wheels with a feather"},
                                  {"sort the springs", "sorted the springs by size"}};

constexpr Trade kTrades[] = {
    {"baker", "the bakery", "loaf of bread|cherry cake|bun|pie", "was pulling loaves from the oven",
     kBakerChores},
    {"fisherman", "the harbour", "net|rope|bucket", "was mending a net", kFisherChores},
    {"farmer", "the farm", "cheese|basket|rope|bucket|rake", "was carrying hay to the cows",
     kFarmerChores},
    {"gardener", "the park", "spade|basket|pear|plum|pot of jam|watering can|rake",
     "was cutting a hedge", kGardenerChores},
    {"carpenter", "the workshop",
     "toy boat|toy train|rocking horse|spinning top|hammer|ladder|flute|saw|box of nails",
     "was planing a long plank", kCarpenterChores},
    {"blacksmith", "the forge", "bell|lantern|spade|hammer|ring|box of nails|rake|watering can",
     "was hammering a horseshoe", kSmithChores},
    {"librarian", "the library", "picture book|notebook|map", "was stamping a book",
     kLibrarianChores},
    {"toymaker", "the toy shop", "kite|ball|drum|puppet|paint box|spinning top|doll",
     "was painting a tiny face on a puppet", kShopChores},
    {"beekeeper", "the orchard", "jar of honey|candle|jar", "was lifting the lid of a hive",
     kBeeChores},
    {"postman", "the post office", "notebook|rope|umbrella", "was sorting letters", kPostChores},
    {"miller", "the mill", "basket|bucket|loaf of bread", "was tying up a sack of flour",
     kMillerChores},
    {"potter", "the market", "cup|teapot|plate|jar", "was setting out rows of pots", kPotterChores},
    {"tailor", "the village square", "scarf|hat|ribbon|mittens|blanket", "was threading a needle",
     kTailorChores},
    {"lighthouse keeper", "the lighthouse", "lantern|compass|rope|blanket", "was trimming the lamp",
     kKeeperChores},
    {"clockmaker", "the station", "clock|music box|compass|whistle", "was bent over a tiny wheel",
     kClockChores},
};

constexpr AnimalKind kAnimals[] = {
    {"puppy", "brown|spotted|fluffy|small", "barked", "Biscuit|Patch|Rusty|Pickle", "", "a bone",
     true},
    {"kitten", "grey|white|black|striped", "mewed", "Smoky|Snowdrop|Inky|Tiger", "",
     "a saucer of milk", true},
    {"pony", "brown|white|shaggy", "neighed", "Chestnut|Cloud|Bracken", "", "a carrot", true},
    {"goat", "white|brown|bearded", "bleated", "Nibble|Bluebell|Duke", "", "a cabbage leaf", true},
    {"parrot", "green|red|old", "squawked", "Captain|Mango|Pirate", "", "a nut", true},
    {"rabbit", "white|brown|floppy-eared", "thumped its foot", "Thumper|Cotton|Dandelion", "",
     "a carrot", true},
    {"donkey", "grey|old|stubborn", "brayed", "Pebble|Barnaby|Juniper", "", "a handful of hay",
     true},
    {"duckling", "yellow|tiny|fluffy", "peeped", "", "the reeds by the water", "some crumbs", false,
     true},
    {"hedgehog", "small|prickly|sleepy", "snuffled", "", "its bed of leaves", "a slice of apple",
     false},
    {"fox cub", "red|thin|shy", "whimpered", "", "its den", "a bit of cheese", false},
    {"squirrel", "red|quick|bushy-tailed", "chattered", "", "its hollow tree", "a nut", false},
    {"lamb", "white|small|woolly", "bleated", "", "the flock", "a handful of clover", false},
    {"owl", "brown|young|sleepy", "hooted", "", "its nest", "a bit of meat", false},
    {"seal pup", "grey|round|small", "cried", "", "the open sea", "a little fish", false, true},
    {"swallow", "young|small|blue", "chirped", "", "its nest", "some crumbs", false},
};

}  // namespace

std::span<const std::string_view> girl_names() { return kGirls; }
std::span<const std::string_view> boy_names() { return kBoys; }
std::span<const std::string_view> surnames() { return kSurnames; }
std::span<const std::string_view> animal_child_names() { return kAnimalChildren; }
std::span<const SpeciesKind> species_kinds() { return kSpecies; }
std::span<const PlaceKind> place_kinds() { return kPlaces; }
std::span<const ThingKind> thing_kinds() { return kThings; }
std::span<const Trade> trades() { return kTrades; }
std::span<const AnimalKind> animal_kinds() { return kAnimals; }

int place_kind(std::string_view name) {
  for (size_t i = 0; i < std::size(kPlaces); ++i) {
    if (kPlaces[i].name == name) return static_cast<int>(i);
  }
  CHECK(false, "no place called " + std::string(name));
  return -1;
}

int thing_kind(std::string_view noun) {
  for (size_t i = 0; i < std::size(kThings); ++i) {
    if (kThings[i].noun == noun) return static_cast<int>(i);
  }
  CHECK(false, "no thing called " + std::string(noun));
  return -1;
}

int choice_count(std::string_view list) {
  if (list.empty()) return 0;
  int count = 1;
  for (char c : list) count += c == '|';
  return count;
}

std::string_view choice(std::string_view list, int index) {
  while (index-- > 0) list.remove_prefix(list.find('|') + 1);
  return list.substr(0, list.find('|'));
}

}  // namespace mixtral::stories
