"""Prints what the benchmarks measured, from their JSON, as it stands in the docs: ``python docs/measured.py --write``.

Whether a target is missed follows from the two numbers. Targets that the JSON holds are read from it; the others stand
in the rows here, as in the benchmark of the same name.
"""

import math
import re
import sys
from pathlib import Path

import first_calls
from claims import (
    NAMES,
    Claim,
    Found,
    all_but,
    exponent,
    lines,
    listed,
    listing,
    machines,
    read,
    short,
    spread,
    targets,
)

PAGE = Path(__file__).parent / "measured.md"
Row = tuple[str, str, str]
HEADER: tuple[Row, ...] = (("question", "measured", "target"), ("---", "---", "---"))
ERRORS = ("push", "pull", "ln mean square", "loss", "kernel", "bias")


# --- the first table ------------------------------------------------------------------------------------------------


def map_over_products(found: Found) -> list[Row]:
    """One draw, all depths, against its products alone."""
    of = found["map"]
    least = {(entry["activation"], entry["what"].split("bare, ")[-1]): entry["least"] for entry in of["targets"]}
    speeds = {
        how: {
            each["activation"]: Claim(each["times_map"][f"bare, {how}"], least.get((each["activation"], how)))
            for each in of["activations"]
        }
        for how in ("two products", "stacked")
    }
    side = math.isqrt(of["points"])
    question = f"{side} x {side} map, width {of['width']}, all {of['depth']} depths, {of['dtype']}, against a bare "
    question += "`lax.scan` of the same matrix products"
    two, stacked = (listing(claims) for claims in speeds.values())
    measured = f"{two} of its speed; if state and tangent are stacked into one product, which is faster: {stacked}"
    return [(question, measured, targets(speeds["stacked"]))]


def exactness(found: Found) -> list[Row]:
    """Digits of deep stacks."""
    of = found["exactness"]
    kinds = len({(row["activation"], row["sigma_w"]) for row in of["rows"]})
    claim = Claim(of["largest at full depth"], most=of["limit"])
    question = f"{max(row['depth'] for row in of['rows']):,} layers, {of['dtype']} against the same Jacobians in "
    question += f"float64: gains, states and parameter gradients, {kinds} kinds of network with and without bias"
    return [(question, rf"largest error {claim} of max(1, \|ln\|), over every layer", claim.wanted)]


MAPS = {
    "tanh": "tables, tanh",
    "tanh, gradients": "tables, tanh, with all gradients",
    "relu": "tables, ReLU",
    "relu, gradients": "tables, ReLU, with all gradients",
    "gelu": "tables, GELU",
    "direct tanh": "rows of vectors, tanh",
}
"""What the benchmark calls them, what the tables do."""


def implicit_maps(found: Found, names: dict[str, str] = MAPS) -> list[Row]:
    """Without weights, against the products that are done without."""
    maps, rows = found["implicit"]["maps"], []
    rates = spread((each["bare GFLOP/s"] for each in maps), unit=" GFLOP/s")
    guessed = sorted({f"{each['width']:,}" for each in maps if each["bare scan"].startswith("from its rate")})
    question = 'the same map without weights (`weights="implicit"`), draw included, over the bare scan, state and '
    question += f"tangent stacked, at {rates}"
    question += f" (width {', '.join(guessed)} by the scan's rate)" if guessed else ""
    for name, label in names.items():
        of = {f"{e['width']:,}": Claim(e["times bare"], e["target"]) for e in maps if e["map"] == name}
        measured = ", ".join(f"{claim} at width {width}" for width, claim in of.items())
        wanted = ", ".join(f"{claim.wanted} at {width}" for width, claim in of.items() if claim.wanted)
        rows.append((f"{question}: times its speed; {label}", measured, wanted))
        question = "the same"
    return rows


def implicit_costs(found: Found) -> list[Row]:
    """Any width, first calls, many points."""
    of = found["implicit"]
    first, last = of["widths"][0], of["widths"][-1]
    (limit,) = {each["target"] for each in of["first_calls"]}
    calls = [each["seconds"] for each in of["first_calls"]]
    (many,) = of["many_points"]
    seconds, memory = Claim(many["seconds"], most=30, unit=" s"), Claim(many["peak GiB"], most=2, unit=" GiB")
    about = f"without weights, {many['points']:,} points, width 1,000, {of['depth']} layers, forward and backward"
    widths = f"without weights, ReLU: time at width {last['width']:,} over that at {first['width']:,}"
    return [
        (widths, str(Claim(last["over the first"])), ""),
        ("without weights, first call", spread(calls, limit, " s"), f"{limit} s"),
        (about, f"{seconds}, {memory}", f"{seconds.wanted}, {memory.wanted}"),
    ]


def implicit_digits(found: Found) -> list[Row]:
    """Every reading beside its limit."""
    of = found["implicit"]["exactness"]
    digits = {f"{NAMES.get(e['activation'], e['activation'])}, {e['what']}": e for e in of}
    float32 = {name: Claim(each["float32 error"], most=1e-5) for name, each in digits.items()}
    tables = {name: Claim(each["table error per 100 layers"], most=1e-6) for name, each in digits.items()}
    question = f"without weights, digits at depth {of[0]['depth']:,}"
    return [
        (f"{question}, float32 against float64", rf"{all_but(float32)}, of max(1, \|ln\|)", targets(float32)),
        (f"{question}, tables in float64, per 100 layers", all_but(tables), targets(tables)),
    ]


def depth(found: Found) -> list[Row]:
    """What grows with depth, and the stream."""
    of, stream = found["depth"], found["depth"]["stream"]
    first, last = of["rows"][0], of["rows"][-1]
    span = f"at depth {last['depth']:,} over depth {first['depth']:,}"
    compiling, memory = listed(of, "compile time"), listed(of, "working memory")
    megabytes = f"{short(last['working MB'])} MB beside {short(first['working MB'])} MB"
    peak = listed(of, "peak GB of the stream", " GB")
    about = f"stream mode, width {stream['width']:,}, {stream['depth']:,} layers ({short(stream['weights GB'])} GB of "
    kept = "some numbers a layer that say from where on nothing is exact"
    return [
        (f"compile time {span}", str(compiling), compiling.wanted),
        (f"working memory {span}: {kept}", f"{memory}: {megabytes}", f"no growth ({memory.wanted})"),
        (f"{about}weights): resident", f"{peak}, {short(stream['seconds'])} s", peak.wanted),
    ]


def spectrum_digits(found: Found) -> list[Row]:
    """All singular values against arbitrary precision."""
    of, kinds = found["spectrum"], found["spectrum"]["exactness"]
    double, single = listed(of, "largest error of any ln s"), listed(of, "error over what float32 allows")
    nats = short(max(kind["plain"] for kind in kinds if math.isfinite(kind["plain"])))
    zeros = [NAMES.get(kind["network"], kind["network"]) for kind in kinds if math.isinf(kind["plain"])]
    plain = f"off by {nats} nats" + (f", and has other zeros than there are ({', '.join(zeros)})" if zeros else "")
    allowed = exponent(f"{max(kind['allowed in float32'] for kind in kinds):.2g}")
    question = f"every ln s of {len(kinds)} kinds of network, three widths each, depths 1 to 300, against 600-digit "
    measured = f"float64: {double}; float32: {single} times what is allowed. A plain float64 decomposition is {plain}"
    return [(f"{question}arithmetic", measured, f"{double.wanted}; {single.wanted} (at {allowed})")]


def spectrum_cost(found: Found) -> list[Row]:
    """Time and memory of whole spectra."""
    of, deep = found["spectrum"], found["spectrum"]["deep"]
    most, memory = listed(of, "spectrum over QR").most, listed(of, "temporary memory")
    growth, seconds = listed(of, "time a layer"), listed(of, "seconds of a", " s")
    total = listed(of, "sum of logs")
    by: dict[str, list[float]] = {}
    for each in of["cost"]:
        by.setdefault(NAMES.get(each["activation"], each["activation"]), []).append(each["ratio"])
    ratios = ", ".join(f"{name} {spread(values, most)}" for name, values in by.items())
    sum_of_logs = f"{seconds}; sum of logs against the determinant: {total}"
    return [
        ("the whole spectrum over a plain QR recursion, width 256, 100 layers", ratios, f"{most:g}"),
        ("its time a layer at 4,000 layers over 1,000", str(growth), growth.wanted),
        ("its temporary memory at 4,000 layers over 100", str(memory), memory.wanted),
        (
            f"the spectrum of {deep['layers']:,} layers of width 64, first call",
            sum_of_logs,
            f"{seconds.wanted}; {total.wanted}",
        ),
    ]


def edges(found: Found) -> list[Row]:
    """The largest singular value against theory."""
    of = found["spectrum"]
    limit = 100 * (listed(of, "edges at width").most or 0)
    claims = {
        f"{NAMES.get(each['activation'], each['activation'])} at {each['depth']} {each['kernel_init']} layers": Claim(
            100 * abs(each["ratio"] - 1), most=limit, unit=" %"
        )
        for each in of["edges"]
    }
    question = f"largest s² at width 1,000 against infinite width, {len(of['edges'])} networks: how far off (finite "
    return [(f"{question}width: it goes with depth/width, see `isometry.py`)", all_but(claims), f"{limit:g} %")]


def architectures(found: Found) -> list[Row]:
    """Sweeps and profiles of anything else."""
    of, wanted = found["architectures"], found["architectures"]["targets"]
    held = of["reached"]["fraction"]
    least = dict.fromkeys(held, wanted["fraction"]) | dict.fromkeys(of["reached"]["llama"], wanted["llama"])
    speeds = {
        each["architecture"]: Claim(each["fraction_of_bare"], least.get(each["architecture"])) for each in of["sweeps"]
    }
    stacks, others = ({n: claim for n, claim in speeds.items() if (n in held) == stack} for stack in (True, False))
    of_stacks = "sweeps of other architectures ({points} points, width {width}, {depth} layers; batch norm with a batch"
    of_stacks += " of 16) against a bare scan of the same products"
    of_others = "the same, of more than products (softmaxes, gates, norms); llama-style blocks alone have a target"
    rows = [(of_stacks.format(**of["setting"]), listing(stacks), targets(stacks))]
    rows += [(of_others, listing(others), targets(others))]
    for network, name in (("resnet", "ResNet CNN ({0} channels, {1} x {2}, group norm)"), ("lstm", "LSTM (width {3})")):
        about = name.format(of["setting"]["channels"], *of["setting"]["size"], of["setting"]["width"])
        gradients, reading = profiles(found, network)
        claim = Claim(gradients, most=wanted[f"{network}_seconds"], unit=" s")
        question = f"gradients of every state and parameter, 1,000 layers, warm: {about}"
        rows.append((question, f"{claim}, {reading}", claim.wanted))
    return rows


def recurrences(found: Found) -> list[Row]:
    """Time as depth."""
    of = found["recurrences"]
    least, steps = of["target_share_of_scan"], f"{of['steps']:,} steps"
    shares = {f"{row['network']} {row['pass']}": Claim(row["share_of_scan"], least) for row in of["rows"]}
    parallel = spread(row["share_of_associative_scan"] for row in of["rows"])
    errors = {name: Claim(error, most=of["target_error"]) for name, error in of["errors_of_float32"].items()}
    worst = max(errors, key=lambda name: errors[name].value)
    question = f"{steps} of LRU and Mamba: state and tangent (forward), all dL/dh_t (backward), all parameters as well "
    return [
        (
            f"{question}(gradients; ours with each step's share), against a bare `lax.scan` of the same recurrence",
            f"{listing(shares)} of its speed; of `lax.associative_scan`'s {parallel}",
            targets(shares),
        ),
        (
            f"dL/dh_t at all of {steps}, float32 against float64, {len(errors)} kinds of recurrence",
            f"largest error {exponent(short(errors[worst].value))} of max(1, \\|ln\\|), of {worst}",
            exponent(f"{of['target_error']:.0e}"),
        ),
    ]


def profiles(found: Found, network: str) -> tuple[float, str]:
    """Seconds of the gradients, and in words those of plain float32's reading."""
    gradients, reading = (each for each in found["architectures"]["profiles"] if each["network"] == network)
    how = "with the float32 reading" if "naive_reading_too" in reading else "the float32 reading alone"
    return gradients["seconds"], f"{how} {short(reading['seconds'])} s"


def trainings(found: Found) -> list[Row]:
    """Maps of trainings, and the border of divergence."""
    border, dimensions = found["training"]["boundary"], found["training"]["boundary"]["dimension"]
    loop = "an ordinary `nnx.jit` loop of Flax and optax, compilation and models included (the loop: a sample at "
    rows: list[Row] = []
    for each, most in zip(found["training"]["maps"], (600, None), strict=True):  # ten minutes for the whole map
        seconds, ratio = Claim(each["seconds"], most=most, unit=" s"), Claim(each["ratio"], each["target ratio"])
        scales, (first, *_, last) = each["trainings"] // len(each["depths"]), each["depths"]
        question = f"a trainability map ({scales} scales x {len(each['depths'])} depths, {first} to {last}, width "
        question += f"{each['width']}, 200 steps of 64 digits), all cores, against "
        question += "the same loop" if rows else f"{loop}{len(each['flax']['sampled depths'])} depths, extrapolated)"
        wanted = "; ".join(filter(None, (seconds.wanted, ratio.wanted)))
        rows.append((question, f"{seconds}, {ratio} times faster", wanted))
    seconds = Claim(border["seconds, warm"], most=20, unit=" s")
    claims = {name.removeprefix("tanh, "): Claim(value, 1, 2) for name, value in dimensions.items()}
    claims = {"at once": claims.pop("tanh"), **claims, "linear": Claim(dimensions["linear"], 0.95, 1.05)}
    about = f"{border['points']} x {border['points']} trainings (width 16, 16 examples, 100 steps), warm"
    rows.append((about, str(seconds), seconds.wanted))
    rows.append(
        ("dimension of their border, at once and zoomed in; of a linear network's", listing(claims), targets(claims))
    )
    return rows


def theory(found: Found) -> list[Row]:
    """The slowest activation is the one that counts."""
    of = found["theory"]

    def slowest(what: str, scale: float = 1, unit: str = " s") -> tuple[str, str]:
        most = scale * (listed(of, f"{what}, seconds").most or 0)
        return spread((scale * row[what] for row in of["rows"]), most, unit), f"{most:g}{unit}"

    nan = listed(of, "NaN cells")
    about = f"theory: a map of {of['points']:,} points, float64, {len(of['rows'])} activations"
    return [
        (rf"{about}, warm: q\*, chi and xi_grad", *slowest("map, q*")),
        (r"c\* and xi_c as well", *slowest("map, c*")),
        ("its first call in a fresh process: pieces, tables, compilation", *slowest("first call")),
        ("its cells that are NaN", str(nan), nan.wanted),
        (r"`mean_field` at a point with c\*", *slowest("point", 1e3, " ms")),
        ("`theory.critical`, sigma_w of a sigma_b", *slowest("critical", 1e3, " ms")),
    ]


def diagnosis(found: Found) -> list[Row]:
    """Models of which the truth is known."""
    of, placed = found["diagnosis"], found["diagnosis"]["the layer to blame"]
    ours, *tools = of["scores"]
    right, alarms = Claim(ours["right"], of["limit"]), Claim(ours["false alarms"], most=0)
    question = f"{of['models']} small models of which it is known what is wrong with them (`tests/sick_models.py`, "
    question += "made with this library): the verdict; the layer to blame where there is one; false alarms"
    measured = f"{right}; {sum(placed.values())} of {len(placed)}; {alarms} of {ours['of healthy']}. The rules of "
    measured += f"{len(tools)} tools on the same: {spread(tool['right'] for tool in tools)}, with "
    measured += f"{spread(tool['false alarms'] for tool in tools)} false alarms"
    return [(question, measured, f"{right.wanted}; {alarms.wanted}")]


def importing(found: Found) -> list[Row]:
    """The first thing that anybody waits for."""
    claim = listed(found["import"], "import time")
    reason = "kinds of arguments are checked by beartype"
    return [(f"`import vgjax` over `import jax, flax.nnx` ({reason})", str(claim), claim.wanted)]


# --- the second table -----------------------------------------------------------------------------------------------


def map_by_autodiff(found: Found) -> list[Row]:
    """As one would write it."""
    each = [of["times_map"] for of in found["map"]["activations"]]
    times = lambda name: spread((of[name] for of in each), unit=" times the map's time")  # noqa: E731
    return [
        (
            "the same map by plain `jax.grad` of the grid as one batch (no exponents, so right only inside the float "
            "range, and one depth a pass)",
            times("jax.grad, whole grid, shared draw"),
            "",
        ),
        ("by `vmap` over networks with weights of their own (a part, scaled up)", times("vmap, own weights"), ""),
        ("by `jax.grad` of one network after the other (one, scaled up)", times("jax.grad loop"), ""),
    ]


def other_depths(found: Found) -> list[Row]:
    """Where the largest errors are."""
    of = found["exactness"]
    worst = lambda row: max(row[name] for name in ERRORS)  # noqa: E731
    where = lambda row: f"{row['activation']}, sigma_w = {row['sigma_w']:g}, {row['depth']:,} layers"  # noqa: E731
    rows = []
    for name, what in (("rows", "of the list"), ("at criticality, beside the list", "at criticality, beside the list")):
        row = max(of[name], key=worst)
        measured = f"{short(worst(row))} ({where(row)})"
        rows.append((f"largest error of float32 at any depth, {of['width']} units wide, {what}", measured, ""))
    return rows


def other_speeds(found: Found) -> list[Row]:
    """What has no target."""
    rows = implicit_maps(found, {"hard_tanh": "tables, hard_tanh", "hard_tanh, gradients": "with all gradients"})
    for network, name in (("resnet_no_norm", "ResNet without norm"), ("gru", "GRU")):
        seconds, reading = profiles(found, network)
        about = f"gradients of every state and parameter, 1,000 layers: {name}"
        rows.append((about, f"{short(seconds)} s, {reading}", ""))
    for each in found["training"]["batching"]:
        together = {key.split()[-1]: 1e3 * value for key, value in each.items() if key.startswith("together")}
        about = f"a training of 50 steps (width {each['width']}) on one core, in batches of {', '.join(together)}"
        rows.append((about, f"{', '.join(map(short, together.values()))} ms", ""))
    plain, tanh = found["theory"]["plain_iteration_seconds"], found["theory"]["rows"][0]["map, q*"]
    about = r"theory's map by plain Gauss-Hermite iteration, tanh, q\* and chi"
    rows.append((about, f"{short(plain / tanh)} times the map's time", ""))
    figure = short(found["import"]["first_figure"]["seconds"])
    return [*rows, ("`python -m vgjax map`, from a cold start to the figures", f"{figure} s", "")]


def remedies(found: Found) -> list[Row]:
    """What proposals do, and what other tools say."""
    of = found["diagnosis"]
    mended = Claim(of["mended"], of["mended wanted"] * of["sick"])
    tools = ", ".join(f"{each['rule']} {each['right']} ({each['false alarms']})" for each in of["scores"][1:])
    return [
        (f"of {of['sick']} sick ones: mended by the first proposal", str(mended), mended.wanted),
        (f"the rules of tools: right of {of['models']} (false alarms)", tools, ""),
    ]


def public_models(found: Found) -> list[Row]:
    """Models of others, as they are."""
    of = found["public_models"]
    there = [each for each in of["models"] if "sites" in each]
    wanted, among = map(int, of["wanted"]["right"].split(" of "))
    right = Claim(of["right"], wanted / among * of["tried"])
    rows = [
        (
            f"{of['tried']} models that others published: every gradient norm beside `jax.grad`'s",
            f"right {right}; largest error {short(max(max(e['parameters'], e['sites']) for e in there))} in ln",
            of["wanted"]["right"],
        )
    ]
    for name in ("first", "second"):
        claim = Claim(of["median"][f"{name}_call"], most=of["wanted"][f"{name}_call"])
        rows.append((f"their diagnosis over their gradient, {name} call, median", str(claim), claim.wanted))
    return rows


def diagnosis_cost(found: Found) -> list[Row]:
    """Over the gradient alone."""
    of = found["diagnosis_cost"]
    words = {"watch": "a watched step of Adam over a plain one"}
    words |= {name: f"a diagnosis over the gradient, {name} calls" for name in ("first", "second")}
    rows = []
    for name, most in of["wanted"].items():
        claims = {each["network"]: Claim(each[name], most=most) for each in of["networks"] if name in each}
        if claims:
            rows.append((words[name], listing(claims), targets(claims)))
        else:
            claim = Claim(of["reached"][name], most=most)
            rows.append((f"a diagnosis's first call: {name.removeprefix('compile, ')}", str(claim), claim.wanted))
    return rows


# --- the page -------------------------------------------------------------------------------------------------------

FIRST = (
    map_over_products, exactness, implicit_maps, implicit_costs, implicit_digits, depth, spectrum_digits, spectrum_cost,
    edges, architectures, recurrences, trainings, theory, diagnosis, importing,
)  # fmt: skip
SECOND = map_by_autodiff, other_depths, other_speeds, remedies, public_models, diagnosis_cost


def table(found: Found | None = None) -> str:
    """The machine, and what was promised: rows of question, measured, target."""
    found = found or read()
    rows = [row for rows in FIRST for row in rows(found)]
    return f"{machines(found, found)}\n\n{lines([*HEADER, *rows])}"


def rest(found: Found | None = None) -> str:
    """What the same files hold besides."""
    found = found or read()
    rows = [row for rows in SECOND for row in rows(found)]
    return lines([*HEADER, *rows])


def regions() -> dict[str, str]:
    """What stands between which markers of the page."""
    found = read()
    return {"measured": table(found), "also measured": rest(found), "first calls": first_calls.table(found)}


def main() -> None:
    """Print all of it, or put it in its places."""
    text = PAGE.read_text()
    for name, content in regions().items():
        made = f"<!-- {name} -->\n\n{content}\n\n<!-- /{name} -->"
        if "--write" in sys.argv:
            before, _, after = re.split(f"(<!-- {name} -->\n.*?<!-- /{name} -->)", text, flags=re.S)
            text = before + made + after
        else:
            print(made)
    if "--write" in sys.argv:
        PAGE.write_text(text)


if __name__ == "__main__":
    main()
