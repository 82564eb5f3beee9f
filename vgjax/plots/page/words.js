// Numbers and sentences. Every number goes through `number`, so that what is read is what was computed.
"use strict";

const words = (() => {
  const SUPERSCRIPT = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };
  const LN2 = Math.log(2), LN10 = Math.log(10);

  // Entries below `least` are 0, above `most` infinite; ln. Float32 and bfloat16 share their exponents.
  const FORMATS = {
    float32: { least: -126 * LN2, most: 128 * LN2 },
    bfloat16: { least: -126 * LN2, most: 128 * LN2 },
    float16: { least: -24 * LN2, most: 16 * LN2 },
  };

  const raised = (exponent) => [...String(exponent)].map((each) => SUPERSCRIPT[each]).join("");

  // To so many digits, with a true minus; infinities by their sign.
  function number(x, digits = 4) {
    if (Number.isNaN(x)) return "not known";
    if (!Number.isFinite(x)) return x > 0 ? "∞" : "−∞";
    if (x === 0) return "0";
    const [mantissa, exponent] = x.toPrecision(digits).split("e");
    return mantissa.replace("-", "−") + (exponent ? `×10${raised(Number(exponent))}` : "");
  }

  // To so many decimals, for what may be the rounding of a sum, as logarithms near 0 and correlations are.
  const decimals = (x, count) => (Number.isNaN(x) ? number(x) : x.toFixed(count).replace(/^-(0\.0*)$/, "$1").replace("-", "−"));

  // A logarithm to four digits, or as many decimals.
  const log = (x) => (Math.abs(x) < 1 ? decimals(x, 4) : number(x));

  // A factor given by its natural logarithm, far beyond the floats too.
  function factor(log, digits = 2) {
    if (!Number.isFinite(log)) return number(Math.exp(log));
    const exponent = Math.floor(log / LN10);
    if (exponent >= -3 && exponent < 4) return number(Math.exp(log), digits);
    const mantissa = Math.exp(log - exponent * LN10).toPrecision(digits), carried = mantissa.startsWith("10");
    return `${carried ? (1).toPrecision(digits) : mantissa}×10${raised(exponent + carried)}`;
  }

  // The last layer, coming from the output, at which a condition on ln ||dL/dh^l|| holds: from there back it is lost.
  const lastWhere = (logs, holds) => logs.findLastIndex(holds);

  // From which layer back a format loses the norm and the entries of a gradient; -1 if nowhere.
  function losses(mean, width, format) {
    const { least, most } = FORMATS[format], entry = Math.log(width) / 2;
    return {
      normZero: lastWhere(mean, (log) => 2 * (log - entry) < least),
      normInfinite: lastWhere(mean, (log) => 2 * log > most),
      entriesZero: lastWhere(mean, (log) => log - entry < least),
      entriesInfinite: lastWhere(mean, (log) => log - entry > most),
    };
  }

  const told = (zero, infinite) =>
    zero >= 0 ? `0 from layer ${zero} back` : infinite >= 0 ? `∞ from layer ${infinite} back` : "held at all layers";

  // What is lost of norm and entries, in words.
  function floats(mean, width, format) {
    const lost = losses(mean, width, format);
    return [told(lost.normZero, lost.normInfinite), told(lost.entriesZero, lost.entriesInfinite)];
  }

  const LEADS = { ordered: "Gradients vanish", chaotic: "Gradients explode", critical: "Critical: gradients keep their size" };

  // The whole in words: [lead, rest].
  function verdict(point, gradient, { depth, width, format }) {
    const over = gradient.mean[0], spread = gradient.deviation[0];
    if (!Number.isFinite(over)) return [LEADS[point.phase], ". Over this depth theory has no number for the gradient."];
    const layer = point.phase === "critical" ? " in the mean square" : `: a factor ${number(point.growth, 3)} a layer`;
    const draws = `(two draws in three: ${factor(over - spread)} to ${factor(over + spread)})`;
    const typical = `At width ${width} a gradient is ${factor(over)} times its size behind ${depth} layers ${draws}`;
    const [norm] = floats(gradient.mean, width, format);
    const read = norm.startsWith("held") ? `${format} holds its norm at all layers` : `${format} reads its norm as ${norm}`;
    return [LEADS[point.phase], `${layer}. ${typical}; ${read}.`];
  }

  const NOTES = {
    "grows without bound": "q grows without bound: there is no fixed point, and χ, c* and the depth scales are their limits far out.",
    "decays to zero": "q decays to zero: χ, c* and the depth scales are their limits for small signals.",
    "every q is fixed": "Every q is a fixed point: the variance stays where the input puts it.",
    "several fixed points": "There are several fixed points; these numbers are of the one that is reached from q₀.",
    oscillates: "The fixed point repels and q circles around it: these numbers are of the fixed point, the curves of what q does.",
  };

  // What else has to be said; `left` is the layer from which on correlations are not known, -1 if all are.
  function note(status, reason, left) {
    const outside = left >= 0 && `From layer ${left} on q lies outside the float range, and c is not known.`;
    return [NOTES[status], reason && `No edge of chaos at this bias scale: ${reason}.`, outside].filter(Boolean).join(" ");
  }

  return { FORMATS, LN10, number, decimals, log, factor, floats, losses, verdict, note, raised };
})();
