"""Write small data for the pages of docs/: a few kilobytes for each way to learn, and documents. All of it is made up.

    python examples/make_data.py FOLDER

    ner-train.conll, ner-dev.conll   "token<TAB>tag" lines, sentences apart by an empty line: PER, LOC, ORG
    qa-train.json, qa-dev.json       SQuAD's format: short texts, and questions whose answer is a piece of the text
    letters.jsonl                    eight letters, one per line: {"id": ..., "text": ...}
    places.txt                       places to look for in them, one per line
    policy.txt                       a privacy policy of one page
    reviews-train.tsv, -dev.tsv      text and label: positive, negative
    letters-train.txt, -dev.txt      a text, its paragraphs apart by an empty line
    dates-train.jsonl, -dev.jsonl    {"source": "3 May 1987", "target": "1987-05-03"}
    chats.jsonl                      {"prompt": ..., "response": ...}
    choices.jsonl                    {"text": ..., "choices": [...], "label": 1}
    shapes.npz                       images of 16 x 16 points: "image", "label"
    clips/                           sounds of a second: metadata.csv has file, text and label
    vit/, wav2vec2/, whisper/        how images and sounds are prepared for models from scratch

Sentences come from patterns, with names drawn from lists; patterns and names of the dev files are not in the train files.
A model trained on them has seen few kinds of sentences: enough to show how the tasks work, not more.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from wave import open as open_wave

import numpy as np


def listed(text: str) -> list[str]:
    """Return the names of a text, apart by commas or, where it has none, by blanks."""
    return [name.strip() for name in text.replace("\n", " ").split("," if "," in text else None)]


FIRST = listed("""
Ada Alan Amara Anna Anton Astrid Ben Boris Carla Chen Clara Daniel Diego Dora Edgar Elena Emil Erik Esther Farid Felix
Fiona Greta Hana Hassan Helen Hugo Ida Igor Ines Ivan Jana Jonas Julia Karim Katya Kenji Lars Laura Lea Leon Lina Luis
Maria Marek Marta Mei Mila Nadia Nils Nina Olga Omar Oscar Paula Pedro Petra Priya Rosa Ruth Samir Sara Sofia Stefan
Tariq Tess Tomas Vera Victor Wanda Yusuf Zara Zofia
""")
LAST = listed("""
Abbott Aziz Bauer Becker Bell Berg Blum Brandt Brooks Castro Cohen Costa Cruz Dahl Dubois Duarte Ekman Faure Ferrari
Fischer Foster Garcia Graf Green Haas Hansen Hoffman Horvat Ito Jansen Kaya Keller Khan Kim Klein Kovacs Kumar Lang
Larsen Lehmann Lopez Mancini Martin Mendes Meyer Miller Moreau Nagy Nakamura Novak Okafor Olsen Ortiz Park Patel
Petrov Popov Ramos Reyes Ricci Rossi Sato Schmidt Silva Singh Sokolov Stone Suzuki Torres Vogel Walker Weber Wolf
Yamada Young Zhang
""")
PLACES = listed("""
Accra, Algeria, Amsterdam, Ankara, Antwerp, Argentina, Athens, Australia, Austria, Bangkok, Barcelona, Basel, Belgium,
Bergen, Berlin, Bolivia, Bologna, Bombay, Boston, Brazil, Bremen, Brussels, Bucharest, Buenos Aires, Cairo, Canada,
Cape Town, Chicago, Chile, China, Cologne, Colombia, Copenhagen, Cuba, Dakar, Damascus, Delhi, Denmark, Dresden,
Dublin, Ecuador, Edinburgh, Egypt, Finland, Florence, France, Geneva, Genoa, Germany, Ghana, Glasgow, Greece, Hamburg,
Hanoi, Havana, Helsinki, Hong Kong, Hungary, Iceland, India, Indonesia, Iran, Ireland, Istanbul, Italy, Jakarta,
Japan, Kenya, Kiev, Kyoto, Lagos, Leipzig, Lima, Lisbon, London, Los Angeles, Lyon, Madrid, Malaysia, Marseille,
Melbourne, Mexico, Milan, Montreal, Morocco, Moscow, Munich, Nairobi, Naples, Nepal, Netherlands, New York, New
Zealand, Nigeria, Norway, Osaka, Oslo, Oxford, Paris, Peru, Poland, Porto, Portugal, Prague, Quebec, Rio de Janeiro,
Rome, Rotterdam, Russia, San Francisco, Santiago, Scotland, Senegal, Seoul, Seville, Shanghai, Singapore, South
Africa, Spain, Stockholm, Sweden, Switzerland, Sydney, Syria, Tehran, Thailand, Tokyo, Toronto, Tunisia, Turin,
Turkey, Uganda, Ukraine, Valencia, Vancouver, Venice, Vienna, Vietnam, Warsaw, Zurich
""")
KINDS = listed("""
Museum, Orchestra, City Council, Institute, Chamber of Commerce, Academy, Football Club, Observatory, Opera, Bank
""")
FIRMS = listed("""
Foundation, Press, Brothers, Industries, Laboratories, Shipping, Airlines, Energy, Books, Motors
""")
PATTERNS = """{per} moved from {loc} to {loc} , where she worked at the {org} .
{per} was born in {loc} and studied in {loc} .
The {org} is looking for a new director .
In {loc} , the winter was long and cold .
{per} and {per} met at the {org} in {loc} .
The letter of {per} arrived from {loc} after three weeks .
{per} , who founded the {org} , lives in {loc} .
Last year the {org} opened an office in {loc} .
The train from {loc} to {loc} was late again .
According to {per} , the {org} has no debts .
{per} works for {org} .
Yesterday {per} spoke about the history of {loc} .
The price of bread rose in March .
Nobody knew where the key was , so we waited outside .
{org} and {org} signed an agreement in {loc} .
After the war , {per} returned to {loc} .
The University of {loc} invited {per} to give a lecture .
He asked the committee of the {org} for a loan .
{loc} and {loc} share a long border .
Dr {per} of the {org} wrote the report .
We drank tea in the garden and talked about the weather .
The ship left {loc} on Monday and reached {loc} on Friday .
Her brother {per} never left {loc} .
The painting belongs to the {org} , not to {per} .
Most of the books had been printed in {loc} .
My neighbours sold their old car and bought two bicycles .
Thanks to {org} , the school in {loc} has a library .
{per} thanked {per} for the photographs .
When does the bus to {loc} leave ?
The {org} announced that {per} would become its president .
Dear {per} , thank you for the books .
Please send the parcel to {per} in {loc} .
They grow olives , lemons and figs on the hills near {loc} .
A doctor from {loc} treated {per} .
Early in the morning the baker lights the oven .
{per} visited the {org} twice .
The members elected {per} to the board of {org} .
From {loc} we took the night train to {loc} .
The meeting in {loc} was cancelled because of the strike .
She sent a postcard from {loc} to {per} .""".splitlines()

Tagged = list[tuple[str, str]]


class Names:
    """Names drawn from one half of the lists: `part` 0 for training, 1 for the rest."""

    def __init__(self, draw: random.Random, part: int) -> None:
        def mine(names: list[str]) -> list[str]:
            return [name for place, name in enumerate(names) if (place % 5 == 0) == bool(part)]

        self.draw, self.first, self.last, self.places = draw, mine(FIRST), mine(LAST), mine(PLACES)

    def per(self) -> str:
        first, last = self.draw.choice(self.first), self.draw.choice(self.last)
        return self.draw.choice([f"{first} {last}", f"{first} {last}", first, last])

    def loc(self) -> str:
        return self.draw.choice(self.places)

    def org(self) -> str:
        place, last, other = self.draw.choice(self.places), self.draw.choice(self.last), self.draw.choice(self.last)
        named = f"{place} {self.draw.choice(KINDS)}", f"University of {place}", f"{last} {self.draw.choice(FIRMS)}"
        return self.draw.choice([*named, f"{last} & {other}", f"{place} {self.draw.choice(FIRMS)}"])


def sentence(pattern: str, names: Names) -> Tagged:
    """Return the words of a pattern with their IOB2 tags."""
    found: Tagged = []
    for word in pattern.replace("University of {loc}", "{university}").split():
        slot = re.fullmatch(r"\{(\w+)\}", word)
        if slot is None:
            found.append((word, "O"))
            continue
        kind = "org" if slot[1] == "university" else slot[1]
        value = f"University of {names.loc()}" if slot[1] == "university" else getattr(names, kind)()
        tags = [f"{'I' if place else 'B'}-{kind.upper()}" for place in range(len(value.split()))]
        found += zip(value.split(), tags, strict=True)
    return found


def sentences(count: int, part: int) -> Iterator[Tagged]:
    """Yield tagged sentences, each pattern equally often."""
    drawn = Names(random.Random(part), part)
    patterns = [pattern for place, pattern in enumerate(PATTERNS) if (place % 5 == 0) == bool(part)]
    for number in range(count):
        yield sentence(patterns[number % len(patterns)], drawn)


FACTS = (
    ("{per} founded the club in {year}.", (("Who founded the club?", "per"), ("When was the club founded?", "year"))),
    ("It has {count} members.", (("How many members does it have?", "count"),)),
    ("Its office is in {loc}.", (("Where is its office?", "loc"), ("Which city is the office in?", "loc"))),
    ("A ticket costs {price}.", (("How much is a ticket?", "price"), ("What does a ticket cost?", "price"))),
    ("Meetings take place {when}.", (("When are the meetings?", "when"), ("How often do they meet?", "when"))),
    ("The library opens at {hour}.", (("When does the library open?", "hour"),)),
    ("Letters are kept for {period}.", (("How long are letters kept?", "period"),)),
    ("Its money comes from {source}.", (("Where does its money come from?", "source"), ("Who pays for it?", "source"))),
    ("Visitors may not {ban}.", (("What must visitors not do?", "ban"), ("What is forbidden?", "ban"))),
    ("Questions are answered by {per}.", (("Who answers questions?", "per"),)),
    ("Data are deleted after {period}.", (("When are data deleted?", "period"), ("How long is data kept?", "period"))),
    ("We collect {things}.", (("What do you collect?", "things"), ("Which data are collected?", "things"))),
    ("Photographs are shared with {source}.", (("Who are photographs shared with?", "source"),)),
)
VALUES = {
    "when": ["every Monday", "on the first Friday of the month", "twice a year", "each spring", "every second Tuesday"],
    "hour": ["nine o'clock", "half past ten", "noon", "eight in the morning", "seven"],
    "period": ["two years", "thirty days", "six months", "ten years", "a year", "90 days"],
    "source": [
        "its members",
        "the city council",
        "two foundations",
        "a bank in Basel",
        "the visitors",
        "local schools",
    ],
    "ban": ["take photographs", "bring dogs", "smoke in the garden", "touch the pictures", "use their telephones"],
    "things": [
        "names and addresses",
        "the date of each visit",
        "your e-mail address",
        "photographs of gardens",
        "old maps",
    ],
}


def passage(names: Names) -> tuple[str, list[tuple[str, str, int]]]:
    """Return a short text of some facts, and its questions: (question, answer, where the answer begins)."""
    draw, text, asked = names.draw, "", []
    for template, questions in draw.sample(FACTS, draw.randint(3, 6)):
        value = {
            "per": names.per(),
            "loc": names.loc(),
            "year": str(draw.randint(1850, 2020)),
            "count": str(draw.randint(20, 900)),
            "price": f"{draw.randint(2, 40)} euros",
        } | {name: draw.choice(values) for name, values in VALUES.items()}
        start = len(text) + bool(text)
        text = f"{text} {template.format(**value)}".strip()
        for question, slot in questions:
            asked.append((question, value[slot], text.index(value[slot], start)))
    return text, asked


def squad(count: int, part: int) -> dict[str, object]:
    """Return passages and questions in SQuAD's format."""
    drawn = Names(random.Random(part), part)
    paragraphs = []
    for number in range(count):
        text, asked = passage(drawn)
        qas = [
            {
                "id": f"{part}-{number}-{place}",
                "question": question,
                "answers": [{"text": answer, "answer_start": start}],
            }
            for place, (question, answer, start) in enumerate(asked)
        ]
        paragraphs.append({"context": text, "qas": qas})
    return {"version": "1.1", "data": [{"title": "clubs", "paragraphs": paragraphs}]}


LETTERS = (
    "Dear Clara, I arrived in Lisbon on Sunday. Felix Brandt met me at the station. Tomorrow we take the train to Porto.",
    "The Lisbon Observatory has invited Ada Novak to speak about comets. She will travel from Warsaw by ship.",
    "Felix Brandt writes that the winter in Oslo was mild. He has sold his house and moved to Bergen, in Norway.",
    "The board of the Oslo Museum thanks Ada Novak for her photographs of Norway. They will be shown in New York.",
    "Nobody answered our letter. The garden is full of roses, and the baker has opened his shop again.",
    "Hugo Keller of the Basel Academy visited Warsaw and Prague. In Prague he met Clara Stone.",
    "Clara Stone was born in new york and lives in Lisbon. She works for Keller Press.",
    "Keller Press and the University of Warsaw will print the letters of Ada Novak.",
)
REQUIRED = ("Lisbon", "New York", "Warsaw", "Norway", "Kyoto")
POLICY = """The Garden Club keeps the data of its members with care.

We collect names, addresses and the date of each visit. Photographs are shared with the local newspaper, if a member agrees.

Data are deleted after two years. Letters are kept for ten years, since the law asks for it. Questions are answered by Marta Weber,
who reads her mail every Monday.

Visitors may not bring dogs. The library opens at noon, and a ticket costs 4 euros.
"""


GOOD = listed("wonderful, moving, funny, clever, warm, gripping, fresh, brilliant, honest, charming, lively, superb")
BAD = listed("dull, clumsy, boring, shallow, tedious, awful, stale, noisy, lifeless, silly, weak, hopeless")
WORKS = listed("film, story, cast, ending, script, music, comedy, thriller, portrait, plot, camera work, dialogue")
REVIEWS = """The {work} is {word} from beginning to end .
A {word} {work} and a {word} {work} .
I found the {work} {word} , and so did my neighbours .
Rarely has a {work} been so {word} .
It is {word} .
The {work} is not {other} at all : it is {word} .
My sister had called it {other} ; to me the {work} seemed {word} .
What a {word} {work} !
Critics wrote of a {other} {work} , but what we saw was {word} .
With a {work} this {word} , nobody looks at the clock .""".splitlines()
MONTHS = listed("January February March April May June July August September October November December")
Rows = list[dict[str, object]]


def reviews(count: int, part: int) -> str:
    """Return lines of a review and its label; the words of judgement of part 1 are not in part 0."""
    draw = random.Random(part + 10)
    good, bad = ([word for i, word in enumerate(words) if (i % 5 == 0) == bool(part)] for words in (GOOD, BAD))
    lines: dict[str, str] = {}
    while len(lines) < count:
        label = draw.choice(["positive", "negative"])
        own, others = (good, bad) if label == "positive" else (bad, good)
        pattern = draw.choice(REVIEWS)
        slots = {"work": WORKS, "word": own, "other": others}
        filled = (draw.choice(slots[piece]) if piece in slots else piece for piece in re.split(r"[{}]", pattern))
        lines["".join(filled)] = label
    return "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in lines.items())


def dates(count: int, part: int) -> Rows:
    """Return dates in words, and as a standard writes them: even days in part 0, odd ones in part 1."""
    draw, found = random.Random(part), dict[str, str]()
    while len(found) < count:
        year, month, day = draw.randint(1900, 2025), draw.randint(1, 12), draw.randint(1, 14) * 2 - part
        found[f"{day} {MONTHS[month - 1]} {year}"] = f"{year}-{month:02}-{day:02}"
    return [{"source": source, "target": target} for source, target in found.items()]


def chats() -> Rows:
    """Return short questions and answers."""
    pairs = [(f"What comes after {one}?", f"{two} comes after {one}.") for one, two in pairwise(MONTHS)]
    pairs += [(f"Is {word} praise?", f"Yes, {word} is praise.") for word in GOOD]
    pairs += [(f"Is {word} praise?", f"No, {word} is not praise.") for word in BAD]
    return [{"prompt": prompt, "response": response} for prompt, response in pairs]


def choices(count: int) -> Rows:
    """Return beginnings of sentences, each with two ends of which one fits."""
    draw, found = random.Random(0), []
    for number in range(count):
        label, place = number % 2, draw.choice(PLACES)
        ends = [f"to {place} .", f"a bowl of {draw.choice(listed('soup, rice, figs, lemons'))} ."]
        found.append(
            {
                "text": draw.choice(["She took the train", "They flew"]),
                "choices": ends[:: 1 - 2 * label],
                "label": label,
            }
        )
    return found


def write_shapes(path: Path, count: int) -> None:
    """Write images of horizontal and vertical bars with noise."""
    draw = np.random.default_rng(0)
    labels = np.arange(count) % 2
    bars = np.zeros((count, 16, 16, 3))
    for image, label in zip(bars, labels, strict=True):
        start = draw.integers(0, 12)
        (image if label else image.swapaxes(0, 1))[:, start : start + 4] = 200
    images = np.clip(bars + draw.integers(0, 56, bars.shape), 0, 255).astype(np.uint8)
    np.savez_compressed(path, image=images, label=np.array(["horizontal", "vertical"])[labels])


def write_clips(folder: Path, count: int) -> None:
    """Write sounds, of which each letter of the text is a tone, and a list of them."""
    draw, rows = np.random.default_rng(0), ["file,text,label"]
    folder.mkdir(exist_ok=True)
    for number in range(count):
        text = "".join("abcd"[i] for i in draw.integers(0, 4, 4))
        times = np.arange(4000) / 16000
        tones = [np.sin(2 * np.pi * (300 + 300 * "abcd".index(letter)) * times) * np.hanning(4000) for letter in text]
        wave = np.concatenate(tones) + draw.normal(0, 0.01, 16000)
        with open_wave(str(folder / f"{number:02}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16000)
            file.writeframes((wave * 12000).astype("<i2").tobytes())
        rows.append(f"{number:02}.wav,{text},{'low' if text[0] in 'ab' else 'high'}")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def write_preparations(folder: Path) -> None:
    """Write how a model from scratch is to read images and sounds: what the files of a checkpoint say of it."""
    characters = {token: number for number, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"abcd"])}
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    wave = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16000, "do_normalize": True}
    files: dict[str, object] = {f"{kind}/config.json": {"model_type": kind} for kind in ("vit", "wav2vec2", "whisper")}
    files |= {
        "vit/preprocessor_config.json": {
            "image_processor_type": "ViTImageProcessor",
            "size": {"height": 16, "width": 16},
        },
        "wav2vec2/preprocessor_config.json": {**wave, "return_attention_mask": True, "padding_value": 0.0},
        "wav2vec2/vocab.json": characters,
        "wav2vec2/tokenizer_config.json": {
            "tokenizer_class": "Wav2Vec2CTCTokenizer",
            "word_delimiter_token": "|",
            **special,
        },
        "whisper/preprocessor_config.json": {
            "feature_extractor_type": "WhisperFeatureExtractor",
            "sampling_rate": 16000,
            "feature_size": 80,
            "hop_length": 160,
            "chunk_length": 1,
            "n_fft": 400,
        },
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")


def as_lines(rows: Rows) -> str:
    """Return rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def story(count: int, part: int) -> str:
    """Return paragraphs of five sentences."""
    told = [" ".join(word for word, _ in each).replace(" ,", ",").replace(" .", ".") for each in sentences(count, part)]
    return "\n\n".join(" ".join(told[i : i + 5]) for i in range(0, count, 5)) + "\n"


def main(folder: Path) -> None:
    """Write all files, and say how large those of text are."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"places.txt": "\n".join(REQUIRED) + "\n", "policy.txt": POLICY}
    for name, count, part in (("train", 2000, 0), ("dev", 200, 1)):
        rows = ("".join(f"{word}\t{tag}\n" for word, tag in each) for each in sentences(count, part))
        files[f"ner-{name}.conll"] = "\n".join(rows)
        files[f"qa-{name}.json"] = json.dumps(squad(count // 10, part), indent=1)
        files[f"reviews-{name}.tsv"] = reviews(count // 4, part)
        files[f"dates-{name}.jsonl"] = as_lines(dates(count // 4, part))
        files[f"letters-{name}.txt"] = story(count // 2, part)
    files["letters.jsonl"] = as_lines(
        [{"id": f"letter-{number}", "text": text} for number, text in enumerate(LETTERS, 1)]
    )
    files["chats.jsonl"], files["choices.jsonl"] = as_lines(chats()), as_lines(choices(64))
    write_shapes(folder / "shapes.npz", 64)
    write_clips(folder / "clips", 24)
    write_preparations(folder)
    for name, text in sorted(files.items()):
        (folder / name).write_text(text, encoding="utf-8")
        print(f"{name:17} {len(text):7} characters")


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
