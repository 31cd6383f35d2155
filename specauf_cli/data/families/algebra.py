"""Algebra: formulas between dollar signs, the answer in ``\\boxed{}``."""

from __future__ import annotations

import random

from specauf_cli.data.families.words import Schema, Turns, say, worked


def _poly(v: str, *coefficients: int) -> str:
    """Highest power first: ("x", 3, 0, -1) is ``3x^2 - 1``."""
    text = ""
    for power, c in zip(range(len(coefficients) - 1, -1, -1), coefficients, strict=True):
        if c:
            sign = (" - " if c < 0 else " + ") if text else ("-" if c < 0 else "")
            size = "" if abs(c) == 1 and power else str(abs(c))
            text += sign + size + (v if power else "") + (f"^{power}" if power > 1 else "")
    return text or "0"


def _some(r: random.Random, limit: int) -> int:
    """From ``-limit`` to ``limit``, but not zero."""
    return r.randint(1, limit) * r.choice((-1, 1))


def _in_brackets(n: int) -> str:
    return f"({n})" if n < 0 else str(n)


def _boxed(r: random.Random, question: str, answer: str, *steps: str) -> Turns:
    end = say(r, f"<The answer is |So the answer is |We get >$\\boxed{{{answer}}}$.")
    return say(r, question), f"{worked(r, steps)}\n{end}"


def _solve(equation: str, v: str) -> str:
    return (
        f"<Solve for ${v}$: ${equation}$.|Find the value of ${v}$ such that ${equation}$.|What is ${v}$ if "
        f"${equation}$?"
        f"|Solve the equation ${equation}$.|If ${equation}$, find ${v}$.>"
    )


def _move(n: int) -> str:
    return f"subtract {n} from both sides" if n > 0 else f"add {-n} to both sides"


def _linear(r: random.Random) -> Turns:
    v, a, b, x = r.choice("xyznt"), r.randint(2, 12), _some(r, 20), r.randint(-12, 12)
    return _boxed(
        r,
        _solve(f"{_poly(v, a, b)} = {a * x + b}", v),
        str(x),
        f"{_move(b)}: ${a}{v} = {a * x}$",
        f"divide both sides by {a}: ${v} = {x}$",
    )


def _both_sides(r: random.Random) -> Turns:
    v, x, c, rest, b = r.choice("xyznt"), r.randint(-9, 9), r.randint(2, 6), r.randint(2, 6), _some(r, 15)
    d = rest * x + b
    return _boxed(
        r,
        _solve(f"{_poly(v, c + rest, b)} = {_poly(v, c, d)}", v),
        str(x),
        f"subtract ${c}{v}$ from both sides: ${_poly(v, rest, b)} = {d}$",
        f"{_move(b)}: ${rest}{v} = {d - b}$",
        f"divide both sides by {rest}: ${v} = {x}$",
    )


def _system(r: random.Random) -> Turns:
    k, x, y = r.randint(1, 6), _some(r, 15), _some(r, 15)
    s, d = k * x + y, x - y
    first, second = f"{_poly('x', k, 0)} + y = {s}", f"x - y = {d}"
    return _boxed(
        r,
        f"<Solve the system ${first}$ and ${second}$.|Find $(x, y)$ if ${first}$ and ${second}$."
        f"|Two numbers satisfy ${first}$ and ${second}$. What is $(x, y)$?>",
        f"({x}, {y})",
        f"add the two equations: ${k + 1}x = {s + d}$",
        f"divide both sides by {k + 1}: $x = {x}$",
        f"put this into the second equation: $y = {x} - {_in_brackets(d)} = {y}$",
    )


def _quadratic(r: random.Random) -> Turns:
    v, (p, q) = r.choice("xyznt"), sorted(r.sample([n for n in range(-15, 16) if n], 2))
    equation = f"{_poly(v, 1, -p - q, p * q)} = 0"
    return _boxed(
        r,
        f"<Find all solutions of ${equation}$.|Solve ${equation}$ by factoring.|What are the roots of ${equation}$?"
        f"|For which values of ${v}$ is ${equation}$?>",
        f"{p}, {q}",
        f"we need two numbers with sum {-p - q} and product {p * q}: they are {-p} and {-q}",
        f"factor the left side: $({_poly(v, 1, -p)})({_poly(v, 1, -q)}) = 0$",
        f"each factor can be zero: ${v} = {p}$ or ${v} = {q}$",
    )


def _expand(r: random.Random) -> Turns:
    v, a, c, b, d = r.choice("xyznt"), r.randint(1, 4), r.randint(1, 4), _some(r, 9), _some(r, 9)
    result = _poly(v, a * c, a * d + b * c, b * d)
    return _boxed(
        r,
        f"<Expand|Multiply out|Write as a polynomial:|Find the product> $({_poly(v, a, b)})({_poly(v, c, d)})$.",
        result,
        f"multiply ${_poly(v, a, 0)}$ by the second factor: ${_poly(v, a * c, a * d, 0)}$",
        f"multiply ${b}$ by the second factor: ${_poly(v, b * c, b * d)}$",
        f"add the like terms: ${result}$",
    )


def _simplify(r: random.Random) -> Turns:
    v, a, c, b, d = r.choice("xyznt"), r.randint(2, 7), r.randint(2, 7), _some(r, 9), _some(r, 9)
    result = _poly(v, a + c, a * b + d)
    return _boxed(
        r,
        f"<Simplify|Collect the like terms in|Simplify the expression|Write in simplest form:> "
        f"${a}({_poly(v, 1, b)}) + {_poly(v, c, d)}$.",
        result,
        f"multiply out the bracket: ${a}({_poly(v, 1, b)}) = {_poly(v, a, a * b)}$",
        f"add the terms with ${v}$: ${a}{v} + {c}{v} = {a + c}{v}$",
        f"add the numbers: ${a * b} + {_in_brackets(d)} = {a * b + d}$",
    )


def _evaluate(r: random.Random) -> Turns:
    v, f, a, b, c = r.choice("xyznt"), r.choice("fghpq"), r.randint(1, 5), _some(r, 9), _some(r, 9)
    x = r.choice((-5, -4, -3, -2, 2, 3, 4, 5, 6))
    value, shown = a * x * x + b * x + c, f"{f}({v}) = {_poly(v, a, b, c)}"
    return _boxed(
        r,
        f"<Let ${shown}$. Find ${f}({x})$.|If ${shown}$, what is ${f}({x})$?|Evaluate ${shown}$ at ${v} = {x}$.>",
        str(value),
        f"the square is ${_in_brackets(x)}^2 = {x * x}$",
        f"the first term is ${a} * {x * x} = {a * x * x}$ and the second is ${b} * {_in_brackets(x)} = {b * x}$",
        f"add the terms: ${a * x * x} + {_in_brackets(b * x)} + {_in_brackets(c)} = {value}$",
    )


def _sequence(r: random.Random) -> Turns:
    start, step, n = r.randint(-12, 20), _some(r, 12), r.randint(6, 20)
    shown, value = ", ".join(str(start + step * i) for i in range(4)), start + step * (n - 1)
    return _boxed(
        r,
        f"<Find term {n} of the arithmetic sequence ${shown}$.|An arithmetic sequence begins ${shown}$. What is term "
        f"{n}?"
        f"|The sequence ${shown}$ grows by the same amount each time. What is term {n}?>",
        str(value),
        f"the common difference is ${start + step} - {_in_brackets(start)} = {step}$",
        f"from term 1 to term {n} there are ${n} - 1 = {n - 1}$ differences",
        f"term {n} is ${start} + {n - 1} * {_in_brackets(step)} = {value}$",
    )


ALGEBRA: tuple[Schema, ...] = (_linear, _both_sides, _system, _quadratic, _expand, _simplify, _evaluate, _sequence)
