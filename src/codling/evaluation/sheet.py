"""Comparison sheets: a row a picture, a column a version, each with its caption."""

from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

MARGIN, CAPTION = 12, 30


@dataclass(frozen=True)
class Panel:
    """One picture of a sheet and the line below it."""

    image: Image.Image
    caption: str


def comparison_sheet(rows: list[list[Panel]], *, width: int = 512) -> Image.Image:
    """Lay panels out, each scaled to `width` px (for looking at; measure the files)."""
    font = ImageFont.load_default(size=16)
    scaled = [[(_fit(panel.image, width), panel.caption) for panel in row] for row in rows]
    heights = [max(image.height for image, _ in row) + CAPTION for row in scaled]
    columns = max(len(row) for row in rows)
    size = (columns * (width + MARGIN) + MARGIN, sum(heights) + MARGIN * (len(rows) + 1))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    y = MARGIN
    for row, height in zip(scaled, heights, strict=True):
        for column, (image, caption) in enumerate(row):
            x = MARGIN + column * (width + MARGIN)
            sheet.paste(image, (x + (width - image.width) // 2, y))
            draw.text((x + width // 2, y + height - CAPTION + 6), caption, "black", font, anchor="mt")
        y += height + MARGIN
    return sheet


def _fit(image: Image.Image, width: int) -> Image.Image:
    # Upright pictures get the height of level ones, so that a sheet stays compact.
    factor = min(width / image.width, width / image.height) if image.height > image.width else width / image.width
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
