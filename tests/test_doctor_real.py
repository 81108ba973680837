"""Real runs of a pretrained model on SVAMP, in excerpts: what became of them is known."""

from __future__ import annotations

import pytest

from reftune.evaluation.doctor.diagnosis import history
from reftune.problem import Row
from test_doctor import SETTINGS

# Per step: of 128 samples of 16 questions how many were right, readable and cut off; entropy in
# thousandths, explained variance in hundredths, clipped tokens in ten thousandths, KL in tenths; and of
# 200 questions how many were answered, every 20 steps of the first and every 10 of the second run.
RUNS: dict[str, dict[str, str]] = {
    # SmolLM2-135M-Instruct with 64 programs and a critic: test accuracy 11.1 -> 18.8, +7.7 [5.2, 10.2].
    "gained": {
        "right": """
            27 32 11 41 24 20 23 16 39 52 48 41 48 34 28 52 49 41 31 47 60 44 38 30 42 54 51 46 18
            61 65 43 50 48 58 43 60 71 42 44 49 63 33 39 44 56 52 25 69 36 58 47 60 61 63 44 53 53
            58 71 49 78 50 52 35 39 53 38 82 36 59 50 73 24 56 57 66 67 77 70""",
        "readable": """
            84 82 67 102 94 93 99 100 103 104 106 109 110 102 111 105 115 115 108 115 111 105 108
            117 111 124 115 117 122 119 118 124 125 123 122 124 125 126 123 121 118 118 122 119 118
            117 122 117 124 123 125 124 122 121 126 123 126 124 123 127 117 128 123 125 123 126 121
            126 127 121 124 125 126 125 120 121 126 121 125 124""",
        "cut": """
            7 11 12 8 7 6 0 0 1 4 3 3 4 6 5 3 0 0 1 0 3 3 4 0 0 0 3 0 0 0 1 0 1 1 2 0 0 0 0 3 2 2 0
            0 1 2 2 1 0 2 2 0 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1 0 0 0 3 3 0 2 0 0""",
        "entropy": """
            280 235 300 219 236 259 213 203 227 234 249 259 260 265 227 227 195 234 239 228 219 263
            251 240 241 210 226 230 219 222 220 178 197 215 203 190 177 180 196 189 205 199 176 184
            180 212 158 175 195 171 184 154 152 182 134 166 190 172 187 177 175 174 207 138 190 167
            207 214 149 171 192 178 133 180 161 194 143 151 181 138""",
        "explained": """
            0 0 0 -1 -2 -1 -3 -5 -2 -3 -1 -3 -3 -3 -7 -4 -4 -6 -3 -2 -1 1 -3 -5 1 -1 2 -2 -2 -1 1 -1
            -2 -2 -1 -5 1 -2 0 -2 -2 -3 0 -4 0 -1 2 2 -1 1 0 3 4 -1 1 -3 -2 3 6 3 0 5 2 -1 -5 4 3 1
            2 2 5 2 7 -1 5 7 5 11 6 1""",
        "clipped": """
            11 24 57 79 51 62 90 72 103 90 82 102 127 82 74 54 54 65 38 51 36 53 49 61 84 16 49 75
            24 42 46 35 65 29 34 54 24 44 74 33 32 56 57 34 57 33 54 26 25 18 8 25 33 40 35 14 6 6
            10 6 4 4 10 2 5 2 4 6 2 0 4 4 6 0 0 0 0 0 0 0""",
        "validation": """
            68 69 95 89""",
    },
    # The same with 640 programs and a group baseline: no gain on the test questions.
    "gained nothing": {
        "right": """
            37 79 52 68 40 71 60 59 52 48 38 87 67 75 55 64 67 88 52 79 70 50 66 63 61 64 54 46 52
            86 65 83 55 76 88 83 74 77 87 67""",
        "readable": """
            89 115 107 113 117 115 110 117 112 116 118 121 116 118 121 109 114 118 118 126 114 119
            124 121 121 117 119 120 120 115 114 121 119 121 125 121 122 118 123 115""",
        "cut": """
            16 2 2 0 0 2 1 2 7 0 0 0 0 3 0 2 1 0 3 0 0 0 0 1 2 0 1 1 3 0 2 0 2 3 0 1 0 2 0 0""",
        "entropy": """
            300 192 175 202 198 165 180 166 157 163 148 151 138 158 161 174 129 94 160 93 141 169
            131 135 125 140 155 176 149 115 152 122 140 134 117 84 160 143 135 126""",
        "clipped": """
            129 4 11 13 14 1 6 0 1 5 2 3 5 2 10 7 0 19 10 4 2 5 10 3 4 10 20 5 4 8 7 2 0 9 9 0 0 2 3
            5""",
        "kl": """
            0 1 5 7 9 11 11 16 19 21 23 21 20 20 17 19 21 16 29 19 24 26 20 36 30 32 32 38 29 27 32
            30 31 37 27 27 39 30 27 36""",
        "validation": """
            106 104 100 106""",
    },
}
EVERY = {"gained": 20, "gained nothing": 10}


def rows(name: str) -> list[Row]:
    found = {key: list(map(int, text.split())) for key, text in RUNS[name].items()}
    explained = found.get("explained", [0] * len(found["right"]))
    made = []
    for i, right in enumerate(found["right"]):
        ok, cut = found["readable"][i], found["cut"][i]
        row: Row = {
            "step": i + 1, "accuracy": right / 128, "reward": (right + 0.1 * (ok - right)) / 128,
            "statuses": {"ok": ok, "truncated": cut, "exception": 128 - ok - cut},
            "truncated": cut / 128,
            "entropy": found["entropy"][i] / 1000, "explained_variance": explained[i] / 100,
            "clip_fraction": found["clipped"][i] / 1e4, "approx_kl": 3e-4, "response_length": 50.0,
        }  # fmt: skip
        row |= {"kl": found["kl"][i] / 10} if "kl" in found else {}
        if (i + 1) % EVERY[name] == 0:
            row["validation_accuracy"] = found["validation"][(i + 1) // EVERY[name] - 1] / 200
        made.append(row)
    return made


@pytest.mark.parametrize(
    ("name", "noted"),
    [
        ("gained", ["critic_blind"]),  # its advantages are rewards less the mean of the batch
        ("gained nothing", ["sharpened"]),
    ],
)
def test_a_real_run_is_read_as_it_went(name: str, noted: list[str]) -> None:
    found = history(rows(name), SETTINGS)
    assert [(f.name, f.level, f.gone) for f in found] == [(one, "note", False) for one in noted]
