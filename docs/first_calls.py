"""How long first calls take, from the benchmark's JSON."""

from collections.abc import Iterable

from claims import NAMES, Claim, Found, lines, listed, machines, short


def table(found: Found) -> str:
    """Seconds of the plain program by network, how many times that each call takes, and what was wanted."""
    of = found["first_call"]
    calls = [name for name in next(iter(of["networks"].values())) if name not in ("plain", "import")]
    rows = [("network", "plain Flax", *(f"`{call}`" for call in calls)), ("---",) * (len(calls) + 2)]
    for name, each in of["networks"].items():
        times = (f"{short(each[call]['ratio'])} ({each[call]['programs']})" for call in calls)
        rows.append((NAMES.get(name, name), f"{short(each['plain']['first'])} s", *times))
    runs = f"The fastest of {of['rounds']} run{'s' * (of['rounds'] > 1)}. {machines(found, ['first_call'])}"
    return "\n\n".join([lines(rows), runs, wanted_of_first_calls(of), map_command(of)])


def wanted_of_first_calls(of: Found) -> str:
    """Targets by call, each with the networks that reach it where others do not."""
    groups: dict[tuple[str, str], dict[str, Claim]] = {}
    for entry in of["targets"]:
        if entry["what"].startswith("first "):
            call, network, _ = entry["what"].removeprefix("first ").split(", ")
            claim = Claim(of["networks"][network][call]["ratio"], most=entry["most"])
            groups.setdefault((call, claim.wanted), {})[network] = claim
    said = []
    for (call, wanted), claims in groups.items():
        whose = "every network" if len(claims) == len(of["networks"]) else named(claims)
        reached = [name for name, claim in claims.items() if not claim.is_missed]
        but = f", but for {named(reached)}" if reached else ""
        verdict = "reached" if len(reached) == len(claims) else f"missed{but}"
        said.append(f"- `{call}` of {whose}: {wanted} at most; {verdict}")
    return "Wanted were:\n\n" + "\n".join(said)


def named(networks: Iterable[str]) -> str:
    """As the table calls them."""
    return "; ".join(NAMES.get(name, name) for name in networks)


def map_command(of: Found) -> str:
    """What the command line takes."""
    empty, full, programs = (
        Claim(of["map"][name], most=listed(of, f"map, {name}").most, unit=unit)
        for name, unit in (("empty cache", " s"), ("full cache", " s"), ("programs", ""))
    )
    return (
        f"`python -m vgjax map` takes {empty} with an empty cache ({empty.wanted} wanted), {full} again ({full.wanted} "
        f"wanted), and compiles {programs} programs ({programs.wanted} wanted)."
    )
