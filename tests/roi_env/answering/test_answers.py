"""Answers as people and models write them: each is right for its values alone. Nothing here needs math-verify."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roi_env.answering.answers import boxed, extract, stated, turns
from roi_env.answering.base import Question
from roi_env.answering.choices import letters
from roi_env.answering.grading import GradingError, choice, exact, number
from roi_env.answering.values import formula, value_of

Case = tuple[str, Sequence[str], Sequence[str]]
"""A text, references for which it is right, and some for which it is wrong."""


def question(answer: str) -> Question:
    return Question("d", "1", "?", answer)


def judged(grader: Callable[[Question, str], bool], case: Case) -> None:
    text, right, wrong = case
    assert {answer: grader(question(answer), text) for answer in (*right, *wrong)} == {
        **dict.fromkeys(right, True),
        **dict.fromkeys(wrong, False),
    }


NUMBERS: list[Case] = [
    # A value is judged, not digits.
    (r"\boxed{\frac{2}{7}}", ["2/7"], ["7", "2"]),
    ("1/2", ["1/2", "0.5"], ["2", "1"]),
    (r"\boxed{\frac{1}{2}}", ["0.5"], ["2"]),
    (r"\boxed{10^5}", ["100000"], ["5", "10"]),
    (r"\boxed{1 \times 10^5}", ["100000"], ["5", "1"]),
    (r"\boxed{.5}", ["0.5"], ["5"]),
    ("2 3/4", ["2.75"], ["4", "2"]),
    (r"\sqrt{3}", [], ["3"]),
    ("1 257/360", ["617/360"], ["1257/360", "257"]),
    ("10-5", ["5"], ["-5", "10"]),
    ("3-12", ["-9"], ["-12", "3"]),
    (r"\boxed{70{,}000}", ["70000"], ["70", "0"]),
    (r"\boxed{70\,000}", ["70000"], ["70", "0"]),
    (r"\boxed{10\text{ cm}^2}", ["10"], ["2"]),
    ("45 minutes (3/4 of an hour)", ["45"], ["4", "0.75"]),
    (r"so it is \frac{13}{", [], ["13"]),
    (r"2^3\cdot 3^3\cdot 5^3", ["27000"], ["3", "2"]),
    # What a person reads.
    ("The answer is 5.", ["5", "5.0", "$5", "5 apples"], ["7"]),
    ("**Answer:** 5", ["5"], ["7"]),
    ("Final Answer: The final answer is $5$. I hope it is correct.", ["5"], ["7"]),
    (r"first \boxed{3}, then \boxed{5}", ["5"], ["3"]),
    (r"\boxed{5}. As asked, the answer is in \boxed{}", ["5"], []),
    (r"\boxed{\boxed{5}}", ["5"], []),
    (r"<answer>\boxed{5}</answer>", ["5"], []),
    ("There are **5** clips left after 3 days", ["5"], ["3"]),
    ("She will be 4 + 1 = 5 years old 4 years from now.", ["5"], ["4"]),
    ("22 – 7 = 15 games, 48/2 = <<48/2=24>>24 clips", ["24"], ["15"]),
    ("Therefore, the team won 22 – 7 = 15 games.", ["15"], ["7"]),
    ("#### Step 4: Conclusion\nThe total is 5", ["5"], ["4"]),
    (
        "6432768802798179033102143392816358358888",
        ["6432768802798179033102143392816358358888"],
        ["6432768802798179033102143392816358358889"],
    ),
    ("10410749.893", [], ["10410749.89"]),
    ("0.30000000000000004", ["0.3"], []),
    ("50%", ["50", "0.5", "50%"], ["5"]),
    ("1e-10", ["1e-10"], ["2e-10"]),
    # What is no single number.
    (r"\boxed{5}, \boxed{7}", [], ["5", "7"]),
    (r"\boxed{5 \text{ or } 7}", [], ["5", "7"]),
    ("5 apples and 7 pears", [], ["5"]),
    (r"\boxed{5x}", [], ["5"]),
    (r"\boxed{x+5}", [], ["5"]),
    ("<answer>4", [], ["4"]),
    (r"\boxed{4", [], ["4"]),
    (r"5\sqrt{2}", [], ["5", "2"]),
    ("minus 5", ["-5"], ["5"]),
    ("negative 3", ["-3"], ["3"]),
    ("(5)", ["5"], []),
    ("$12.50", ["12.5"], ["50"]),
    ("12.50 dollars per hour", ["12.5"], []),
    ("The total is $1,250.", ["1250"], ["250"]),
    ("1 000 000", ["1000000"], ["0"]),
    ("1\u202f000", ["1000"], ["0"]),
    (r"\boxed{1{,}234{,}567}", ["1234567"], ["567"]),
    (r"\boxed{\frac{3}{4}\text{ cup}}", ["3/4", "0.75"], ["4", "3"]),
    (r"\boxed{3/4}", ["0.75"], ["3", "4"]),
    (r"\boxed{-\frac{3}{4}}", ["-0.75"], ["0.75"]),
    (r"\boxed{2^{10}}", ["1024"], ["10", "2"]),
    (r"\boxed{2^{-3}}", ["1/8"], ["3", "-3"]),
    (r"\boxed{3!}", ["6"], ["3"]),
    (r"\boxed{\sqrt{16}}", ["4"], ["16"]),
    (r"\boxed{4\sqrt{3}}", [], ["4", "3"]),
    (r"\boxed{\log_2 8}", [], ["8", "2"]),
    (r"\boxed{8\pi}", [], ["8"]),
    (r"\boxed{e^5}", [], ["5"]),
    (r"\boxed{2n+1}", [], ["1", "2"]),
    (r"\boxed{(2,3)}", [], ["2", "3"]),
    (r"\boxed{3:4}", [], ["4", "3"]),
    (r"\boxed{12:30}", [], ["30", "12"]),
    (r"\boxed{5 \pm 2}", [], ["5", "2", "7", "3"]),
    ("Between 5 and 7", [], ["5", "7"]),
    ("5-7", ["-2"], ["7", "-7"]),
    ("5 – 7", [], ["7", "5"]),
    ("5 to 7", [], ["7", "5"]),
    ("Step 1: 2+3=5\nStep 2: 5*4=20", ["20"], ["4", "2"]),
    ("So she has 72 clips in total.", ["72"], []),
    ("**72 clips**", ["72"], []),
    ("The answer is 72 clips (48 in April and 24 in May).", ["72"], ["24"]),
    (r"\boxed{72 \text{ clips}}", ["72"], []),
    ("Answer: 3 hours (180 minutes)", ["3"], ["180"]),
    (r"\boxed{180^{\circ}}", ["180"], []),
    (r"\boxed{25\text{ m}/\text{s}}", ["25"], []),
    (r"\boxed{9.8\ \mathrm{m/s^2}}", ["9.8"], ["2"]),
    (r"\boxed{6\text{ units}^3}", ["6"], ["3"]),
    (r"\boxed{100\,\text{km/h}}", ["100"], []),
    ("5 cm³", ["5"], ["3"]),
    ("x² = 9, x = 3", ["3"], ["9"]),
    ("CO2: 5", ["5"], ["2"]),
    ("H2O", [], ["2"]),
    ("1.5 million", ["1500000"], ["1.5"]),
    ("2 thousand", ["2000"], ["2"]),
    (r"\boxed{0.1\overline{6}}", [], ["0.1", "6"]),
    (r"\boxed{1\frac12}", ["1.5"], ["2", "12"]),
    ("≈ 3.14", ["3.14"], []),
    ("~3.14", ["3.14"], []),
    (r"\approx 3.14", ["3.14"], []),
    (r"\boxed{x \approx 3.14}", ["3.14"], []),
    (r"\boxed{\pi \approx 3.14}", ["3.14"], []),
    (r"\boxed{x<5}", [], ["5"]),
    (r"\boxed{x \ge 5}", [], ["5"]),
    ("at least 5", ["5"], []),
    ("#### $18", ["18"], []),
    ("#### 18 dollars", ["18"], []),
    ("#### -18", ["-18"], ["18"]),
    ("####18", ["18"], []),
    ("#### 18.00", ["18"], []),
    ("#### 1,080", ["1080"], ["80"]),
    ("#### 18\n#### 20", ["20"], ["18"]),
    ("#### 5%", ["5"], []),
    ("I have 3 apples, 4 pears, and 5 plums", [], ["3"]),
    ("3 + 4 =", [], ["3", "4"]),
    ("3 + 4 = ", [], ["4"]),
    ("= 12", ["12"], []),
    ("12\n```", ["12"], []),
    ("```\n12\n```", ["12"], []),
    ("\\[\n\\boxed{12}\n\\]", ["12"], []),
    ("$$x = 12$$", ["12"], []),
    (r"$\boxed{12}$ dollars", ["12"], []),
    (r"\fbox{12}", ["12"], []),
    (r"\boxed 12", ["12"], ["1", "2"]),
    (r"\boxed{ 12 }", ["12"], []),
    (r"\boxed{12.}", ["12"], []),
    (r"\boxed{12,}", ["12"], []),
    (r"\boxed{\text{12}}", ["12"], []),
    (r"\boxed{\mathbf{12}}", ["12"], []),
    (r"\boxed{\textbf{12}}", ["12"], []),
    (r"\boxed{{12}}", ["12"], []),
    (r"\boxed{n=12}", ["12"], []),
    (r"\boxed{n = 3\cdot 4 = 12}", ["12"], ["3", "4"]),
    (r"\boxed{AB=12}", ["12"], []),
    (r"\boxed{a_{10}=12}", ["12"], ["10"]),
    (r"\boxed{f(3)=12}", ["12"], ["3"]),
    (r"\boxed{\angle ABC = 12^\circ}", ["12"], []),
    (r"\boxed{P(A) = \frac{1}{3}}", ["1/3"], ["3"]),
    (r"\boxed{12 = x}", ["12"], []),
    (r"\boxed{\dfrac{12}{1}}", ["12"], ["1"]),
    (r"\boxed{12\%}", ["12"], []),
    (r"\boxed{\$12}", ["12"], []),
    (r"\boxed{$12}", ["12"], []),
    (r"\boxed{12\!}", ["12"], []),
    (r"\boxed{1\,2}", [], ["2", "1"]),
    (r"\boxed{033}", ["33"], ["3"]),
    ("١٢", ["12"], []),
    ("１２", ["12"], []),
    ("12 €", ["12"], []),
    ("£12", ["12"], []),
    ("12¢", ["12"], []),
    ("USD 12", ["12"], []),
    ("12 USD", ["12"], []),
    ("<ANSWER>12</ANSWER>", ["12"], []),
    ("<answer>\n12\n</answer>", ["12"], []),
    ("<answer>12</answer></answer>", ["12"], []),
    ("<think>a</think><answer>12</answer>", ["12"], []),
    ("<thinking>it is 7</thinking>12", ["12"], ["7"]),
    ("<think>7", [], ["7"]),
    ("<THINK>7</THINK>12", ["12"], ["7"]),
    ("<think>\n\n</think>\n\n12", ["12"], []),
    ("[THINK]7[/THINK]12", ["12"], ["7"]),
    ("<|channel|>analysis<|message|>it is 7<|end|><|start|>assistant<|channel|>final<|message|>12", ["12"], ["7"]),
    ("<|channel|>analysis<|message|>it is 7", [], ["7"]),
    ("<think>a <think> b</think>12", ["12"], []),
    (r"<think>a</think>b \boxed{12} <think>c \boxed{7}", ["12"], ["7"]),
    ("12<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n7", ["12"], ["7"]),
    ("12</s>7", ["12"], ["7"]),
    ("<|im_start|>assistant\n12<|im_end|>", ["12"], []),
    ("12\n\n### Question\nx\n7", ["12"], ["7"]),
    ("12\n\nProblem: 7", ["12"], ["7"]),
    ("12\nHuman: 7", ["12"], ["7"]),
    ("\\boxed{12}\n\nQuestion: foo\n\\boxed{7}", ["12"], ["7"]),
    ("The answer is 12.\n\n**Question:** what?\n**Answer:** 7", ["12"], ["7"]),
    ("Q: 3*4?\nA: 12\n\nQ: 7?\nA: 7", ["12"], ["7"]),
    ("Let me restate it first:\nQuestion: 3 times 4?\nAnswer: 12", ["12"], []),
    ("Q1: 3\nQ3: 15\nSo IQR is \\boxed{12}", ["12"], ["3"]),
    ("The user: 7\nThe answer is 12", ["12"], []),
    ("The answer is not 7. The answer is 12.", ["12"], ["7"]),
    ("The answer is 7. Wait, no. The answer is 12.", ["12"], ["7"]),
    ("The correct answer is 12, not 7.", ["12"], ["7"]),
    ("Thus 12 is the answer.", ["12"], []),
    ("The final answer is\n\n\\[ 12 \\]", ["12"], []),
    ("Answer: 12 (A)", ["12"], []),
    ("**Final Answer: 12**", ["12"], []),
    ("### Answer: 12", ["12"], []),
    ("### Final Answer\n\n**12**", ["12"], []),
    ("answer=12", ["12"], []),
    ("ANSWER: 12", ["12"], []),
    ("Final answer — 12", ["12"], []),
    ("The answer would be 12 apples.", ["12"], []),
    ("The answer to the question is 12.", ["12"], []),
    ("the answer to question 3 is 12", ["12"], ["3"]),
    ("Answer: twelve", [], ["3"]),
    ("", [], ["0"]),
    ("\n\n", [], ["0"]),
    (r"\boxed{}", [], ["0"]),
    ("no", [], ["0"]),
    ("It takes 12 days", ["12"], []),
    (r"12 \frac{1}{2}", ["12.5"], ["12", "2"]),
    ("12 1/2", ["12.5"], ["2"]),
    ("−12", ["-12"], ["12"]),
    ("–12", ["-12"], ["12"]),
    ("- 12", ["-12"], []),
    ("(-12)", ["-12"], []),
    ("12e-1", ["1.2"], []),
    ("1.2E+3", ["1200"], []),
    ("1.2x10^3", ["1200"], ["3"]),
    ("1.2 × 10³", ["1200"], ["3"]),
    ("1.2*10^3", ["1200"], []),
    ("1.2*10**3", ["1200"], []),
    ("10^{-2}", ["0.01"], ["2", "-2"]),
    ("3/0", [], ["0", "3"]),
    ("12/", [], ["12"]),
    ("12^", [], ["12"]),
    ("12 +", [], ["12"]),
    ("(12", [], ["12"]),
    ("{12", [], ["12"]),
    (r"\frac{12", [], ["12"]),
    (r"\frac{12}", [], ["12"]),
    (r"\sqrt{12", [], ["12"]),
    ("12,", ["12"], []),
    ("3,14", ["3.14"], ["314", "14"]),
    ("0,5", ["0.5"], ["5"]),
    ("1.000,50", ["1000.5"], []),
    ("1'000", ["1000"], []),
    ("12 000,50", ["12000.5"], []),
    ("1,23,456", ["123456"], []),
    ("12,34", ["12.34"], ["1234", "34"]),
    ("1, 2, 3", [], ["3", "1"]),
    (r"\boxed{7 \times 10^{23}}", ["7e23"], ["23"]),
    ("12 x 3", ["36"], ["3", "12"]),
    ("12 by 3", [], ["12"]),
    ("12 out of 20", [], []),
    ("12 in.", ["12"], []),
    ("12'", ["12"], []),
    ("12th", ["12"], []),
    (r"12\text{th}", ["12"], []),
    ("12^{th}", ["12"], []),
    (r"12^{\text{th}}", ["12"], []),
    ("The answer is the sum of the two numbers.\nSo 3+4 = 7.", ["7"], ["3"]),
    ("There are 24 clips **left**", ["24"], []),
    ("#### Therefore\nSo she has 5 apples.", ["5"], []),
    ("To find the answer: we add the numbers.\n\nTotal: 12 apples", ["12"], []),
    ("**Total**: 5 apples", ["5"], []),
    ("**Total:** 5 apples", ["5"], []),
    ("| a | **5** |", ["5"], []),
    ("Total | 5 |", ["5"], []),
    ("Answer: 5\nConfidence: 90%", ["5"], ["90"]),
    ("The answer is 5 (100% sure).", ["5"], ["100"]),
    ("The final answer is 1,000,000.", ["1000000"], []),
    ("answer: 5.\nQuestion: 6", ["5"], ["6"]),
    ("The answer is 3 hours and 30 minutes", [], ["3", "30"]),
    ("The answer is -3", ["-3"], ["3"]),
    ("The answer is:-3", ["-3"], ["3"]),
    (r"The answer is: $\boxed{-3}$", ["-3"], ["3"]),
    ("Answer:5", ["5"], []),
    ("the answer is five (5)", ["5"], []),
    ("The answer is $5 per apple times 3 = $15.", ["15"], ["5"]),
    ("The answer is 2 × 3 = 6.", ["6"], ["2", "3"]),
    ("Thus the total cost is 12 + 13 = $25.00", ["25"], ["13"]),
    ("So, Bob spends $25 each week.", ["25"], []),
    ("Natalia sold 72 clips altogether in April and May.", ["72"], []),
    ("she has 10 dollars left", ["10"], []),
    ("So x equals 3/4.", ["0.75"], ["4", "3"]),
    ("Thus, m+n = 3+4 = 7", ["7"], ["3"]),
    (r"\boxed{m+n=7}", ["7"], []),
    (r"\boxed{\text{Final Answer: } 7}", ["7"], []),
    (r"\boxed{7\text{ (in cm)}}", ["7"], []),
    (r"\boxed{7}\text{ cm}", ["7"], []),
    (r"\boxed{\;7\;}", ["7"], []),
    ("$\\boxed{7}$\n\nLet me check: 3+4=8?", ["7"], ["8"]),
    (r"\boxed{7\,}", ["7"], []),
    (r"\boxed{\frac{7}{1}}", ["7"], []),
    (r"\boxed{\lfloor 7.5 \rfloor}", [], ["7", "7.5"]),
    (r"\boxed{\text{approximately } 7}", ["7"], []),
    (r"\boxed{7\cdot 10^0}", ["7"], []),
    (r"\boxed{\mathrm{7}}", ["7"], []),
    (r"\boxed{7\mathrm{cm}}", ["7"], []),
    (r"\boxed{\displaystyle 7}", ["7"], []),
    (r"\boxed{(7)}", ["7"], []),
    (r"\boxed{[7]}", ["7"], []),
    (r"\boxed{\left\{7\right\}}", ["7"], []),
    (r"\boxed{7{,}5}", ["7.5"], ["75"]),
    (r"\boxed{1{,}5}", [], ["15"]),
    (r"\boxed{\text{7}}", ["7"], []),
    (r"\boxed{7,000.50}", ["7000.5"], []),
    (r"\boxed{7 000}", ["7000"], []),
    (r"\boxed{7~000}", ["7000"], []),
    (r"\boxed{7\ 000}", ["7000"], []),
    (r"\boxed{7\;000}", ["7000"], []),
    (r"\boxed{7\thinspace000}", ["7000"], []),
    (r"\boxed{7_000}", [], ["7", "0"]),
    (r"\boxed{1.5\text{e}3}", [], ["3"]),
    (r"\boxed{\$1\text{ million}}", ["1000000"], ["1"]),
    (r"\boxed{1\text{ million}}", ["1000000"], ["1"]),
    (r"\boxed{3\frac{1}{4}\%}", ["3.25"], ["4"]),
    (r"\boxed{33\frac{1}{3}\%}", ["100/3", "1/3"], ["3"]),
    (r"\boxed{-3\frac{1}{4}}", ["-3.25"], []),
    ("3 1/4 cups", ["3.25"], ["4"]),
    ("3-1/4", [], ["4", "3"]),
    (r"\boxed{\sqrt[3]{8}}", ["2"], ["3", "8"]),
    (r"\boxed{2^{2^{3}}}", ["256"], ["64"]),
    (r"\boxed{-2^2}", ["-4"], ["4"]),
    (r"\boxed{(-2)^2}", ["4"], ["-4"]),
    (r"\boxed{2^{-1}}", ["0.5"], ["-1"]),
    (r"\boxed{\frac{1}{2}+\frac{1}{3}}", ["5/6"], ["3"]),
    (r"\boxed{\frac{\frac{1}{2}}{3}}", ["1/6"], ["3"]),
    (r"\boxed{\tfrac34}", ["0.75"], ["34"]),
    (r"\boxed{100!}", [], ["100"]),
    (r"\boxed{\sum_{i=1}^{3} i}", [], ["3", "1"]),
    (r"\boxed{\infty}", [], ["8"]),
    (r"\boxed{\log 100}", [], ["100"]),
    (r"\boxed{|−7|}", ["7"], ["-7"]),
    (r"\boxed{a=3, b=4}", [], ["3", "4"]),
    ("3, 4", [], ["3", "4"]),
    ("3 4", [], ["3", "4"]),
    ("3; 4", [], ["3", "4"]),
    ("3/4/2024", [], ["2024", "3", "4"]),
    ("2024-03-04", [], ["4", "2024"]),
    ("12:30 PM", [], ["30", "12"]),
    ("Chapter 3", ["3"], []),
    ("3.14.15", [], ["3.14", "15"]),
    ("0x1F", [], ["0", "1"]),
    ("+7", ["7"], ["-7"]),
    ("--7", [], ["-7"]),
    ("~7", ["7"], []),
    ("7?", ["7"], []),
    ("#7", ["7"], []),
    ("No. 7", ["7"], []),
    ("(a) 7", ["7"], []),
    ("(1) 7", ["7"], ["1"]),
    ("1) 7", ["7"], ["1"]),
    ("a) 3 b) 4", [], ["3"]),
    # What is denied is not said.
    ("The answer is not 7.", [], ["7"]),
    ("It isn’t 7", [], ["7"]),
    ("It cannot be 7.", [], ["7"]),
    ("The answer is not 7 but 8.", ["8"], ["7"]),
    ("The answer is 7, not 8.", ["7"], ["8"]),
    # One measure in two units is no number; nor is a ratio in words.
    ("It takes 3 hours and 30 minutes.", [], ["30", "3", "3.5"]),
    ("2 h 15 min", [], ["2", "15"]),
    ("5 feet 7 inches", [], ["5", "7"]),
    ("5'7\"", [], ["5", "7"]),
    ("Tom has 3 kids and needs 12 cookies.", ["12"], ["3"]),
    ("3 out of 4", [], ["3", "4"]),
    ("1 in 6", [], ["1", "6"]),
    ("5 less than 12", [], ["5", "12"]),
    ("so he makes 60 * 2 = 120 in 2 weeks", ["120"], ["2"]),
    # Words that compute.
    ("The answer is 10 to the power of 5", ["100000"], ["10", "5"]),
    ("10 squared", ["100"], ["10", "2"]),
    ("5 factorial", ["120"], ["5"]),
    ("The answer is the square root of 16", ["4"], ["16"]),
    ("The answer is the square root of 3", [], ["3"]),
    ("√16", ["4"], ["6", "16"]),
    ("∛27", ["3"], ["27"]),
    ("他有5个苹果和7个橘子，共12个。", ["12"], ["5", "7"]),
    ("不是5，是6。", ["6"], ["5"]),
    ("答案不是5", [], ["5"]),
    ("比是3：2", [], ["2", "3"]),
    ("答案是5！", ["5"], ["120"]),
    ("2√16", ["8"], ["12"]),
    ("√(9 + 16)", ["5"], ["19"]),
    ("50% of 10", ["5"], ["10", "50"]),
    ("half of 12", [], ["12"]),
    ("half of 12 is 6", ["6"], ["12"]),
    ("7 tenths", [], ["7"]),
    ("20‰", [], ["20"]),
    # Repeating decimals.
    (r"\boxed{0.\overline{3}}", ["1/3", r"0.\bar{3}"], ["0.3", "3"]),
    (r"\boxed{-2.1\overline{36}}", ["-47/22"], ["47/22", "-2.1", "36"]),
    (r"0.\dot{1}4285\dot{7}", ["1/7"], ["0.142857"]),
    (r"\boxed{\overline{36}}", [], ["36"]),
    # Habits of LaTeX.
    (r"\boxed{1~\frac{1}{2}}", ["1.5"], ["1", "1/2"]),
    (r"\boxed{1~000}", ["1000"], ["1", "0"]),
    ("~5", ["5"], []),
    ("5~6", [], ["5", "6"]),
    (r"\boxed{5\\6}", [], ["5", "6"]),
    (r"\boxed{5 \frac{\text{m}}{\text{s}}}", ["5"], []),
    (r"\boxed{\frac{3\text{ m}}{4\text{ s}}}", [], ["3", "4"]),
    (r"\boxed{5 \times 10^{-3}\,\mathrm{mol\,L^{-1}}}", ["0.005"], ["5"]),
    (r"\boxed{\textbf{(A) }42}", ["42"], []),
    (r"\boxed{(C)\ 42}", ["42"], []),
    (r"The answer is \textcolor{red}{42}", ["42"], []),
    (r"The answer is \underline{42}", ["42"], []),
    ("5 < x < 6", [], ["5", "6"]),
    # Said again, or cut.
    ("7/2 or 3.5", ["3.5"], ["7", "2"]),
    (r"\boxed{3\frac{1}{2} \text{ or } 3.5}", ["7/2"], []),
    ("5 or 5", [], ["5"]),
    ("so 12 -", [], ["12"]),
    ("#### 42\n\n\n问题：43\n#### 44", ["42"], ["43", "44"]),
]

CHOICES: list[Case] = [
    ("Not B", [], ["B"]),
    ("The answer isn't B.", [], ["B"]),
    ("It cannot be B", [], ["B"]),
    ("The answer can’t be B", [], ["B"]),
    ("Answer: A dog", [], ["A"]),
    ("The answer is 'B'.", ["B"], []),
    ("‘B’ is correct", ["B"], []),
    ("答案：Ｂ", ["B"], ["A"]),
    ("故选B", ["B"], []),
    ("选A和C", ["A, C"], ["A", "C"]),
    ("答案不是B", [], ["B"]),
    ("（Ｂ）", ["B"], []),
    ("The answer is clear from the text.\nIt is C.", ["C"], ["I"]),
    ("**Explanation** of it: B", ["B"], []),
    ("The best answer is a tie-breaker: B", ["B"], ["A"]),
    ("I pick C. I am sure.", ["C"], ["I"]),
    (r"\boxed{c}", ["C"], []),
    ("(d)", ["D"], []),
    ("b. 4", ["B"], []),
    ("Option A is wrong, so B", ["B"], ["A"]),
    ("The answer is B because A is wrong", ["B", "(B)", "b", "B) 4"], ["A"]),
    ("B) 4\n\nExplanation: it is four", ["B"], []),
    ("The answer is (B).", ["B"], []),
    ("B", ["B"], []),
    (" b ", ["B"], []),
    ("(b)", ["B"], []),
    ("[b]", ["B"], []),
    ("B.", ["B"], []),
    ("B) Paris is nice", ["B"], ["P"]),
    ("Answer: B) A cat", ["B"], ["A"]),
    ("The answer is A cat", [], []),
    ("I believe it's C", ["C"], ["I"]),
    ("I'd say C.", ["C"], ["I"]),
    ("A or B? I would say B.", ["B"], ["A"]),
    ("Option C is the best choice.", ["C"], []),
    ("Options A and B are wrong, so C.", ["C"], ["A", "B"]),
    ("It can't be A, so the answer is D", ["D"], ["A"]),
    ("It is D, not A.", ["D"], ["A"]),
    ("D (not A)", ["D"], ["A"]),
    ("The correct answer is option (C): 42", ["C"], []),
    ("Correct answer: C", ["C"], []),
    ("correct choice: **C**", ["C"], []),
    ("**C. Paris**", ["C"], []),
    ("**(C)**", ["C"], []),
    (r"\boxed{\text{(C)}}", ["C"], []),
    (r"\boxed{C}", ["C"], []),
    (r"\boxed{(C)\ 5}", ["C"], []),
    (r"\boxed{C) 5}", ["C"], []),
    (r"\boxed{C: 5}", ["C"], []),
    (r"\boxed{\mathrm{C}}", ["C"], []),
    (r"\boxed{\textbf{C}}", ["C"], []),
    (r"\boxed{\text{C. }5}", ["C"], []),
    ("a", ["A"], []),
    ("a) 4", ["A"], []),
    ("a. 4", ["A"], []),
    ("(a) 4", ["A"], []),
    ("i", ["I"], []),
    ("A.", ["A"], []),
    ("A: because of gravity", ["A"], []),
    ("A - gravity", ["A"], []),
    ("A", ["A"], []),
    ("The answer is A: gravity", ["A"], []),
    ("The answer is a: gravity", ["A"], []),
    ("The answer is a bird", [], ["A"]),
    ("A bird", [], ["A"]),
    ("A bird can fly, so C", ["C"], ["A"]),
    ("It is a D", ["D"], ["A"]),
    ("Vitamin C is the nutrient, which is option B", ["B"], ["C"]),
    ("The answer is vitamin C", [], []),
    ("I", ["I"], []),
    ("I think the answer is I", ["I"], []),
    ("I don't know", [], ["I", "A"]),
    ("Answer: unknown", [], ["A", "U"]),
    ("None of the above", [], ["A", "N"]),
    ("I am not sure, maybe B", ["B"], ["I"]),
    ("I'm going with E", ["E"], ["I"]),
    ("Let's see. A is false. B is false. C is true.", ["C"], ["A", "B"]),
    ("A is incorrect because B", [], ["A"]),
    ("The answer is B, because A is wrong and C is wrong", ["B"], ["A", "C"]),
    ("The answer is B and not C", ["B"], ["C"]),
    ("B, not C", ["B"], ["C"]),
    ("B rather than C", ["B"], ["C"]),
    ("Therefore the answer is **B) 12 m/s**.", ["B"], []),
    ("Therefore, the correct option is B) 12 N", ["B"], ["N"]),
    ("So the force is 12 N, option B", ["B"], ["N"]),
    ("So the force is 12 N (B)", ["B"], ["N"]),
    ("Thus, answer choice C.", ["C"], []),
    ("C is correct", ["C"], []),
    ("C.\n\nThe capital is Paris", ["C"], []),
    ("C\n\nBecause the others are wrong.", ["C"], []),
    ("Answer:\nB", ["B"], []),
    ("**Answer**\nB", ["B"], []),
    (r"Answer: $\boxed{B}$", ["B"], []),
    ("Final Answer: The final answer is $B$. I hope it is correct.", ["B"], ["I"]),
    (r"The answer is $\text{B}$.", ["B"], []),
    ("<answer>b</answer>", ["B"], []),
    ("<answer>option b</answer>", ["B"], []),
    ("<answer>B. 4</answer>", ["B"], []),
    ("<answer>The answer is B</answer>", ["B"], []),
    ("A, C", ["A,C", "AC", "A and C", "C, A"], ["A", "C"]),
    ("A and C", ["A, C"], ["A", "C"]),
    ("(A), (C)", ["A,C"], ["A"]),
    (r"\boxed{A, C}", ["A,C"], ["A"]),
    (r"\boxed{AC}", ["AC", "A,C"], ["A"]),
    ("A, B, and D", ["A,B,D"], ["A"]),
    ("Q: next? A", [], ["Q"]),
    ("Step B: the answer is D", ["D"], ["B"]),
    ("E = mc^2 so the answer is D", ["D"], ["E"]),
    ("#### D", ["D"], []),
    ("D\n\nQuestion: foo\nA. x\nB. y\nAnswer: B", ["D"], ["B"]),
    ("The answer is D\nUser: B?", ["D"], ["B"]),
    ("<think>A B</think>D", ["D"], ["A", "B"]),
    ("<think>A", [], ["A"]),
    ("my answer is b.", ["B"], []),
    ("Answer: b, since 2+2=4", ["B"], []),
    ("answer is c because it rains", ["C"], []),
    ("The answer is option c", ["C"], []),
    ("I choose b", ["B"], []),
    ("I would choose option d.", ["D"], []),
    ("The best answer is: C", ["C"], []),
    ("Answer - C", ["C"], []),
    ("Answer C", ["C"], []),
    ("ANSWER: C", ["C"], []),
    ("Ans: C", ["C"], []),
    ("答案：C", ["C"], []),
    ("答案是C", ["C"], []),
    ("答案：C。", ["C"], []),
    ("The answer is C.", ["C"], []),
    ("The answer is likely C", ["C"], []),
    ("The answer must be C", ["C"], []),
    ("The answer is either C or D", [], ["C", "D"]),
    ("C or D", [], ["C", "D"]),
    ("C/D", [], ["C", "D"]),
    ("C?", ["C"], []),
    ("C!", ["C"], []),
    ("“C”", ["C"], []),
    ("'C'", ["C"], []),
    ("`C`", ["C"], []),
    ("<C>", ["C"], []),
    ("{C}", ["C"], []),
    ("- C", ["C"], []),
    ("1. C", ["C"], []),
    ("* C) foo", ["C"], []),
    ("> C", ["C"], []),
    (r"C\.", ["C"], []),
    ("C;", ["C"], []),
    ("C,", ["C"], []),
]

EXACT: list[Case] = [
    ("« Paris »", ["Paris"], []),
    ("Ｐａｒｉｓ", ["Paris"], []),
    ("Cafe\u0301", ["Café"], ["Cafe"]),
    ("x²", ["x²"], ["x2"]),
    ("Paris", ["Paris", "paris", "Paris."], ["Pari", "London"]),
    ("**Paris**", ["Paris"], []),
    ("*Paris*", ["Paris"], []),
    ("`Paris`", ["Paris"], []),
    ('"Paris"', ["Paris"], []),
    ("Answer: Paris.", ["Paris"], []),
    ("answer: paris", ["Paris"], []),
    ("**Answer**: Paris", ["Paris"], []),
    ("The answer is: **Paris**.", ["Paris"], []),
    ("The capital is **Paris**.", ["Paris"], []),
    (r"\boxed{\text{Paris}}", ["Paris"], []),
    (r"$\boxed{\text{Paris}}$", ["Paris"], []),
    (r"\boxed{Paris}", ["Paris"], []),
    (r"\boxed{\textbf{Paris}}", ["Paris"], []),
    ("<answer>Paris</answer>", ["Paris"], []),
    ("<answer> **Paris** </answer>", ["Paris"], []),
    ("#### Paris", ["Paris"], []),
    ("Paris\n\nQuestion: of Spain?\nAnswer: Madrid", ["Paris"], ["Madrid"]),
    ("Paris<|im_end|>", ["Paris"], []),
    ("Paris\n", ["Paris"], []),
    ("Paris, maybe", [], ["Paris"]),
    ("The answer is Paris, maybe", [], ["Paris"]),
    ("a_b", ["a_b"], ["ab"]),
    ("x*y", ["x*y"], ["xy"]),
    ("[1, 2, 3]", ["[1, 2, 3]"], ["1, 2, 3"]),
    ("__init__", ["__init__"], []),
    ("$x$", ["x", "$x$"], []),
    ("Answer: St. Louis", ["St. Louis"], []),
    ("Answer: Dr. Who", ["Dr. Who"], []),
    ("Answer: U.S.", ["U.S.", "U.S"], []),
    ("yes", ["Yes"], ["No"]),
    ("Yes.", ["yes"], []),
    ("Answer: Yes, because", [], []),
    ("True", ["true"], []),
    ("The answer is **yes**", ["yes"], []),
    ("So the answer is no.", ["no"], ["yes"]),
    ("Final Answer: The final answer is Paris. I hope it is correct.", ["Paris"], []),
    ("Answer:\nParis", ["Paris"], []),
    ("## Answer\nParis", ["Paris"], []),
    ("**Answer:**\n\nParis", ["Paris"], []),
    ("- Paris", ["- Paris"], []),
    ("I think:\n- Paris", ["Paris"], []),
    ("```\nParis\n```", ["Paris"], []),
    ("36", ["36"], ["3", "6"]),
    ("-36", ["-36"], ["36"]),
    ("5%", ["5%"], ["5"]),
    ("A: Paris", [], ["London"]),
    (r"\boxed{A}", ["A"], []),
    (r"\boxed{x^2}", ["x^2"], []),
    (r"\(x\)", ["x"], []),
    ("<think>Paris</think>London", ["London"], ["Paris"]),
    ("<think>Paris", [], ["Paris"]),
    ("valid", ["valid"], []),
    ("The answer is valid", ["valid"], []),
    ("The answer is not valid", ["not valid"], ["valid"]),
    ("", [], ["x"]),
    ("Answer:", [], ["x"]),
    ("New  York", ["New York"], []),
    ("Paris!", [], []),
    ("'Paris'", ["Paris"], []),
    ("Answer: **Paris** (France)", [], []),
    ("Answer: Paris (France)", [], []),
    (r"The answer is \boxed{Paris}.", ["Paris"], []),
    ("Paris。", [], []),
]


@pytest.mark.parametrize("case", NUMBERS, ids=lambda case: case[0][:40])
def test_numbers(case: Case) -> None:
    judged(number, case)


@pytest.mark.parametrize("case", CHOICES, ids=lambda case: case[0][:40])
def test_choices(case: Case) -> None:
    judged(choice, case)


@pytest.mark.parametrize("case", EXACT, ids=lambda case: case[0][:40])
def test_exact(case: Case) -> None:
    judged(exact, case)


@pytest.mark.parametrize("grader", [number, exact])
def test_thoughts_and_later_turns_are_no_answer(grader: Callable[[Question, str], bool]) -> None:
    for text, right, wrong in [
        (r"<think>so \boxed{36}? wait", (), ("36",)),
        (r"<think>a</think><think>so \boxed{36}", (), ("36",)),
        (r"<think>a</think>\boxed{36}<think>or \boxed{7}", ("36",), ("7",)),
        ("it is 36</think>\n7", ("7",), ("36",)),
        ("#### 5\n\nQuestion: next one?\nAnswer: 9\n#### 9", ("5",), ("9",)),
        ("#### 5\n#### 6\n\nQ: next one?\n#### 9", ("6",), ("5", "9")),
        ("5<|im_end|>\n<|im_start|>user\n9", ("5",), ("9",)),
        ("<answer>5</answer>\nUser: and <answer>9</answer>?", ("5",), ("9",)),
        ("Question: 2 + 3?\nAnswer: 5", ("5",), ("2", "3")),
    ]:
        judged(grader, (text, right, wrong))


def test_a_reference_that_a_grader_cannot_judge_is_named() -> None:
    with pytest.raises(GradingError, match=r"'1'.*'Paris'.*not a rational number"):
        number(question("Paris"), "5")
    with pytest.raises(GradingError, match=r"'1'.*'Paris'.*no letter"):
        choice(question("Paris"), "B")


def test_turns_leave_out_thoughts() -> None:
    assert turns("<think>a</think>b<think>c</think>d") == ["\nbd"]
    assert turns("a</think>b") == ["b"]
    assert turns("a</think>b</think>c") == ["c"]
    assert turns("Question: x\nthought</think>5\nQuestion: y") == ["5", " y"]
    assert turns("<think>a") == turns("") == turns("<|im_start|>assistant\n<think>") == []


def test_boxes_balance_their_braces() -> None:
    assert boxed(r"\boxed{\left\{1, \frac{1}{2}\right.}") == r"\left\{1, \frac{1}{2}\right."
    assert boxed(r"\boxed {b} \boxed c") == "c"
    assert boxed(r"\boxed{1} and $\boxed{2}$") == "1, 2"
    assert boxed(r"\boxed{1} so it is \boxed{2}") == "2"
    assert boxed("no box") is None


# Spellings of a rational number, each a way to write it exactly -------------------------------------------------------


def _grouped(value: int, mark: str) -> str:
    return f"{value:,}".replace(",", mark)


def _decimal(value: Fraction) -> str | None:
    places = next((n for n in range(12) if (value * 10**n).denominator == 1), None)
    if places is None:
        return None
    digits = f"{abs(value.numerator) * 10**places // value.denominator:0{places + 1}d}"
    return ("-" if value < 0 else "") + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)


def spellings(value: Fraction) -> list[str]:
    """Many ways to write a number."""
    sign, over, under = "-" if value < 0 else "", abs(value.numerator), value.denominator
    found = [
        f"{sign}{over}/{under}",
        rf"{sign}\frac{{{over}}}{{{under}}}",
        rf"{sign}\dfrac{{{over}}}{{{under}}}",
        rf"{sign}{over} \div {under}",
        rf"\frac{{{sign}{over}}}{{{under}}}",
        f"({sign}{over})/({under})",
        rf"{sign}{over} \cdot {under}^{{-1}}",
        f"{sign}{over * 3}/{under * 3}".replace("-", "−"),
        f"{value.numerator + 7 * under}/{under} - 7",
    ]
    if under == 1:
        groups = [",", "{,}", r"\,", " ", "\u2009", "\u202f", r"\!,"]
        found += [
            str(value),
            f"{value}.0",
            f"{value}.",
            *(sign + _grouped(over, mark) for mark in groups[: 7 if over > 999 else 1]),
        ]
    else:
        whole, part = divmod(over, under)
        if whole:
            found += [
                f"{sign}{whole} {part}/{under}",
                rf"{sign}{whole}\frac{{{part}}}{{{under}}}",
                f"{sign}{whole} and {part}/{under}",
            ]
    if (decimal := _decimal(value)) is not None:
        found += [decimal, f"{decimal}0" if "." in decimal else decimal, rf"{decimal} \times 10^0", f"{decimal}e0"]
        if decimal.startswith("0."):
            found.append(decimal[1:])
    return found


WRAPPED = [
    "%s",
    r"\boxed{%s}",
    r"so \(x = %s\)",
    "The answer is $%s$.",
    "**Answer:** %s",
    "work\n#### %s",
    "<answer>%s</answer>",
    r"\boxed{%s\text{ cm}^2}",
    "<think>7 or 8?</think>\n**%s**",
    "Final Answer: The final answer is $%s$. I hope it is correct.",
    "%s\n\nQuestion: 3 + 4?\nAnswer: 7",
]
NUMBER = st.builds(
    Fraction,
    st.integers(-(10**7), 10**7) | st.integers(-99, 99),
    st.sampled_from([1, 1, 2, 3, 4, 7, 8, 10, 12, 25, 100, 720]),
)


@settings(deadline=None)
@given(NUMBER, NUMBER, st.data())
def test_every_spelling_is_right_for_its_own_value_alone(value: Fraction, other: Fraction, data: st.DataObject) -> None:
    said = data.draw(st.sampled_from(WRAPPED)) % data.draw(st.sampled_from(spellings(value)))
    reference = data.draw(st.sampled_from(spellings(value)))
    assert number(question(reference), said), (reference, said)
    for wrong in {other, -value, value + 1, value * 10} - {value}:
        assert not number(question(str(wrong)), said), (wrong, said)


@settings(deadline=None)
@given(NUMBER, st.data())
def test_a_cut_answer_is_right_only_where_it_is_stated(value: Fraction, data: st.DataObject) -> None:
    spelled = data.draw(st.sampled_from(spellings(value)))
    text = data.draw(st.sampled_from(WRAPPED[:-1])) % spelled
    visible = text.rpartition("</think>")[2]
    cut = visible[: data.draw(st.integers(0, len(visible)))]
    kept = {value_of(spelled[:length], stated=True) for length in range(len(spelled) + 1)}
    if number(question(str(value)), text[: len(text) - len(visible)] + cut):
        # What is left of the spelling has the value already: 5 of 5.0, 5 cm.
        assert any(found and found.number == value for found in kept if found)
        assert spelled in cut or any(
            (found := value_of(spelled[:length], stated=True)) and found.number == value and spelled[:length] in cut
            for length in range(1, len(spelled))
        )


@settings(deadline=None)
@given(st.text(alphabet=st.sampled_from(r"\{}[]()$#*_<>/|^!%.,:;=+-±≈½²−  12507xABiIa" + "\n"), max_size=60))
def test_no_text_breaks_a_grader(text: str) -> None:
    for grader, answer in ((number, "5"), (choice, "B"), (exact, "x")):
        assert grader(question(answer), text) in (True, False)
    value_of(text, stated=False)
    formula(text)
    letters(text)
    assert stated(text).text == extract(text)


HOSTILE = (
    [
        "<answer>",
        r"\boxed{",
        "{",
        "answer: $$",
        "answer is not ",
        "(",
        "((1,",
        r"\frac",
        r"\sqrt",
        "2^",
        "9^9^9",
        "1/7*3+",
    ],
    ["A or ", "not A ", "the answer to a ", "\n#", "<|a", "**", "5!", "1 and ", "<think>", "5\nQ:\n"],
)


@pytest.mark.parametrize("piece", [piece for pieces in HOSTILE for piece in pieces])
def test_long_and_hostile_texts_are_read_in_bounded_work(piece: str) -> None:
    """Work that grew with the square of the length would take hours here."""
    text = piece * (400_000 // len(piece))
    for grader, answer in ((number, "5"), (choice, "B"), (exact, "x")):
        assert grader(question(answer), text) in (True, False)
