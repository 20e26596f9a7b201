"""Draw the sample pictures in examples/images, three each of four invented flowers: python examples/draw_images.py"""

import math
import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

SIZE, SCALE = 256, 3  # side in pixels, and how many times larger a picture is drawn
FLOWERS = {
    "daisy": {"petals": 18, "width": 0.16, "petal": (245, 245, 238), "centre": (240, 190, 40), "disc": 0.34},
    "gentian": {"petals": 5, "width": 0.50, "petal": (60, 70, 200), "centre": (235, 235, 250), "disc": 0.12},
    "poppy": {"petals": 4, "width": 0.72, "petal": (215, 45, 30), "centre": (40, 25, 35), "disc": 0.26},
    "sunflower": {"petals": 26, "width": 0.13, "petal": (250, 195, 30), "centre": (90, 55, 25), "disc": 0.50},
}


def shade(colour: tuple[int, int, int], amount: float) -> tuple[int, ...]:
    return tuple(max(0, min(255, round(channel * amount))) for channel in colour)


def draw(petals: int, width: float, petal: tuple, centre: tuple, disc: float, dice: random.Random) -> Image.Image:
    """Draw one flower on a blurred meadow, at a random place, size, rotation and brightness."""
    side = SIZE * SCALE
    image = Image.new("RGB", (side, side), shade((60, 110, 50), dice.uniform(0.6, 1.2)))
    canvas = ImageDraw.Draw(image)
    for _ in range(250):
        x, y, length = dice.uniform(0, side), dice.uniform(0, side), dice.uniform(40, 200)
        blade = shade((80, 140, 60), dice.uniform(0.5, 1.3))
        canvas.line((x, y, x + dice.uniform(-40, 40), y - length), fill=blade, width=dice.randint(4, 14))
    image = image.filter(ImageFilter.GaussianBlur(9))
    canvas = ImageDraw.Draw(image)
    x, y = (side * dice.uniform(0.4, 0.6) for _ in range(2))
    radius, turn, light = side * dice.uniform(0.28, 0.42), dice.uniform(0, math.tau), dice.uniform(0.8, 1.05)
    for i in range(petals):
        angle = turn + math.tau * i / petals + dice.uniform(-0.04, 0.04)
        reach = radius * dice.uniform(0.9, 1.05)
        outline = []
        for k in range(25):  # there and back along the petal, widest at two thirds
            t = math.pi * k / 12
            along = reach * (1 - math.cos(t)) / 2
            across = width * radius * math.sin(t) * (0.35 + 0.65 * along / reach)
            outline.append(
                (
                    x + along * math.cos(angle) - across * math.sin(angle),
                    y + along * math.sin(angle) + across * math.cos(angle),
                )
            )
        canvas.polygon(outline, fill=shade(petal, light * dice.uniform(0.88, 1.0)), outline=shade(petal, 0.6))
    core = radius * disc
    canvas.ellipse((x - core, y - core, x + core, y + core), fill=shade(centre, light))
    for _ in range(120):
        r, angle = core * math.sqrt(dice.random()), dice.uniform(0, math.tau)
        dot = (x + r * math.cos(angle), y + r * math.sin(angle))
        canvas.circle(dot, radius * 0.02, fill=shade(centre, light * dice.uniform(0.6, 1.2)))
    return image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


folder = Path(__file__).parent / "images"
folder.mkdir(exist_ok=True)
for name, flower in FLOWERS.items():
    for i in range(1, 4):
        draw(**flower, dice=random.Random(f"{name} {i}")).save(folder / f"{name}_{i}.jpg", quality=88)
