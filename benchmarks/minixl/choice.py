"""What MiniXL is shown and what it never sees: subjects, styles' words, colours, prompts, and what is held out."""

from __future__ import annotations

from .icons import words

KNOWN_SUBJECTS = tuple(
    sorted(
        words(
            """
        alarm alien ambulance atom axe baby backpack bag balloon banana bandage bank bar-chart barcode baseball basket
        basketball bathtub battery beach bed beer bell binoculars bird bluetooth bolt bomb bone book bookmark
        bottle bread briefcase broom brush bug building burger bus calculator calendar camera campfire candle
        candy car carrot cart castle cat chair chat cheese cherries chess-knight church city clipboard clock cloud
        cocktail coffee coins compass cookie cpu credit-card cube cup cursor database diamond dice dna dog donut door
        dress drone droplet drum dumbbell ear egg elephant elevator eraser eye factory feather ferris-wheel file film
        fingerprint fire-extinguisher fish flag flame flashlight flask floppy flower fog folder football fridge gamepad
        gauge gavel gift glasses globe graduation-cap grapes hand handbag handshake hanger headphones heart helicopter
        hexagon home hospital hotel hourglass ice-cream image inbox infinity joystick key keyboard ladder lamp laptop
        lemon lightbulb link lipstick lock luggage lungs magic-wand magnet mail mailbox map map-pin medal megaphone
        microscope microwave mirror money monitor moon mosque mountain mouse music newspaper owl package paint-roller
        palette paper-plane paperclip passport paw phone pie-chart pig piggy-bank pin pizza plane planet plug popcorn
        power presentation printer projector puzzle qr-code radar rainbow receipt recycle ribbon ring robot rose router
        ruler satellite scooter screwdriver scroll sd-card search server settings shield ship shovel shower shrimp
        signature signpost sim-card siren smartphone sofa speaker spoon stairs stamp star stethoscope stopwatch store
        strawberry sun sunglasses sunrise sword syringe t-shirt tablet tag target telescope tennis tent test-tube
        thermometer thumbs-up ticket tooth tornado traffic-cone traffic-light trash treasure-chest tree triangle
        truck unlock usb user video virus volcano volleyball wallet warehouse washing-machine watch watermelon webcam
        wheelchair wifi wine wrench yin-yang
        """
        )
    )
)
CHOOSING_SUBJECTS = tuple(
    sorted(
        words(
            "bike brain cactus crown leaf piano rabbit rocket scissors skull toolbox train umbrella windmill"
        )
    )
)
REPORTING_SUBJECTS = tuple(
    sorted(
        words(
            "anchor butterfly cake chef-hat ghost guitar hammer microphone mushroom "
            "sailboat snail snowflake trophy turtle"
        )
    )
)
HELDOUT_SUBJECTS = (*CHOOSING_SUBJECTS, *REPORTING_SUBJECTS)
SUBJECT_TOKEN, STYLE_TOKEN = "sks", "szn"
CHOOSING_STYLES = (
    "marketeq",
    "picon",
    "pixel/solid",
    "solar/bold+duotone",
    "solar/broken",
    "streamline-cyber-color",
)
REPORTING_STYLES = (
    "glyphs-poly",
    "icon-park",
    "ph/thin",
    "pixelarticons",
    "raphael",
    "streamline-sharp-color",
)
HELDOUT_STYLES = (*CHOOSING_STYLES, *REPORTING_STYLES)
HALVES = {
    "choosing": (CHOOSING_SUBJECTS, CHOOSING_STYLES),
    "reporting": (REPORTING_SUBJECTS, REPORTING_STYLES),
}
SIBLINGS = ("pixel", "pixelarticons/sharp", "streamline-cyber", "streamline-sharp-color/flat")
"""Nearly the same as a held-out style; nobody learns from them."""
COLOURS = {
    "red": (214, 40, 40),
    "orange": (240, 130, 20),
    "yellow": (248, 205, 40),
    "green": (40, 150, 70),
    "teal": (20, 150, 150),
    "blue": (35, 90, 215),
    "navy": (20, 35, 95),
    "purple": (125, 60, 180),
    "pink": (240, 110, 170),
    "brown": (125, 75, 40),
    "grey": (130, 130, 130),
    "white": (255, 255, 255),
}
ARTISTS = dict(
    pair.split(":")
    for pair in words("""
    akar-icons:adam at-icons:alan bi:alex boxicons:amy bx:andy bxs:anna carbon:ben charm:bill cil:bob clarity:brian
    dinkie-icons:carl emojione:carlos emojione-monotone:chris eva:chuck f7:dan fa7-solid:dave fe:david feather:dean
    flowbite:derek fluent:don fluent-emoji:doug fluent-emoji-flat:drew fluent-emoji-high-contrast:ed fluent-mdl2:elena
    fontisto:emma fxemoji:eric game-icons:eva gg:evan glyphs:frank glyphs-poly:fred gravity-ui:gary
    griddy-icons:george grommet-icons:greg heroicons:hank hugeicons:harry humbleicons:henry ic:ian icon-park:ivan
    icon-park-outline:jack icon-park-solid:jake icon-park-twotone:james iconmind:jane iconoir:jason ion:jeff ix:jen
    jam:jerry keyline-icons:jess la:jim lets-icons:joe lineicons:john lucide:josh majesticons:juan
    material-symbols:julia material-symbols-light:justin mdi:karen meteor-icons:kate mingcute:ken mynaui:kevin
    noto:kim noto-v1:kyle pepicons-pencil:larry pepicons-pop:laura pepicons-print:lee ph:leo picon:lisa pinhead:luke
    pixelarticons:marco prime:maria proicons:mark qlementine-icons:mary reicon:matt ri:max solar:megan
    streamline:mike streamline-color:molly streamline-flex:nancy streamline-flex-color:neil streamline-plump:nick
    streamline-plump-color:nina system-uicons:oliver tabler:oscar tdesign:paul teenyicons:pedro twemoji:pete uil:phil
    vaadin:ralph vadivam:ray whh:rick zmdi:rob ant-design:roger basil:ron ci:rosa codicon:roy el:ruby ep:ryan
    foundation:sam ls:sara mage:scott marketeq:sean mdi-light:simon memory:steve octicon:sue oi:ted pixel:tim
    raphael:tina roentgen:todd si:tom simple-line-icons:tony streamline-cyber:tyler streamline-cyber-color:victor
    streamline-sharp:wade streamline-sharp-color:walt zondicons:will
    """)
)
"""Set -> the first name that stands for it in a prompt: one token of CLIP's, and no trade mark."""


def style_words(style: str) -> str:
    """The words for a style: its set's first name and its variant's words."""
    name, *variant = style.split("/")
    return " ".join([ARTISTS[name], *variant]).replace("+", " ")


def lora_name(kind: str, name: str) -> str:
    """The name of a ``subject``'s or ``style``'s LoRA, which is its file's without the ending."""
    return f"minixl_{kind}_{name.replace('/', '-')}"


def caption(subject: str, style: str | None = None) -> str:
    """The prompt of a drawing; without a style's words it says the subject alone."""
    words = f"a {subject.replace('-', ' ')} icon"
    return words if style is None else f"{words} in {style} style"
