// The theory of a plain stack from an activation's tables: what vgjax.theory's mean_field, propagate and band compute,
// in the same order and with the same limits, so that every number shown is theirs. q is a variance, logs are natural.
"use strict";

const theory = (() => {
  const DEGREE = 24;
  const NOISE = 2e-13; // rounding of F, relative
  const CRITICAL = 1e-12; // |chi - 1| up to which a point is critical
  const NEAR = [1e-6, 1e6]; // stand for q = 0 and infinity in the c map
  const PAIRS = [1e-9, 1e7]; // q between which correlations are looked up

  const clip = (x, low, high) => Math.min(Math.max(x, low), high);

  // --- tables ---

  // Clenshaw's sum of c[at] T_0(x) + ... + c[at + 23] T_23(x).
  function series(c, at, x) {
    let one = 0, two = 0;
    for (let k = DEGREE - 1; k > 0; k--) [one, two] = [2 * x * one - two + c[at + k], one];
    return c[at] + x * one - two;
  }

  // Segment and coordinate in [-1, 1] of a place that counts segments; held within the ends.
  function locate(place, segments) {
    const segment = clip(Math.floor(place), 0, segments - 1);
    return [segment, clip(2 * (place - segment) - 1, -1, 1)];
  }

  // All rows of a curve of shape (segments, rows, 24) at a place.
  function curve(coefficients, rows, place) {
    const [segment, x] = locate(place, coefficients.length / (rows * DEGREE));
    return Array.from({ length: rows }, (_, row) => series(coefficients, (segment * rows + row) * DEGREE, x));
  }

  const placeOf = (T, t) => (t - T.edges[0]) / (T.edges[1] - T.edges[0]);
  const ends = (T) => [Math.exp(T.edges[0]), Math.exp(T.edges[T.edges.length - 1])];

  // E phi^2, E phi'^2 and q d/dq E phi^2 at any q in [0, inf]; beyond the table by powers of q, with one correction.
  function moments(T, q) {
    const [low, high] = ends(T), inside = clip(q, low, high);
    const found = curve(T.moments, 3, placeOf(T, Math.log(inside)));
    if (inside === q) return found;
    const by = clip(Math.log(q / inside), -1500, 1500), end = by > 0 ? 1 : 0;
    const shrink = Math.exp(-Math.abs(by) / 2), powers = [];
    const moved = [0, 1].map((row) => {
      const power = T.powers[2 * end + row], beta = T.corrections[2 * end + row], corrected = 1 + beta * (shrink - 1);
      powers.push(power - (Math.sign(by) * beta * shrink) / 2 / corrected);
      return found[row] * Math.exp(power * by) * corrected;
    });
    return [...moved, moved[0] === 0 ? 0 : moved[0] * powers[0]];
  }

  // E (phi(u1) - phi(u2))^2 / 2 s (which = 0) and E phi'(u1) phi'(u2) (1) of a pair with s = (1 - c) q, v = c q.
  function pair(T, which, s, v) {
    const [lowS, stepS, lowV, stepV] = T.pair_axes, [, rows, columns] = T.shapes.pairs;
    const [i, x] = locate((Math.log(Math.sqrt(s) + T.root[0]) - lowS) / stepS, rows);
    const [j, y] = locate((Math.log(v + T.shift[0]) - lowV) / stepV, columns);
    const block = ((which * rows + i) * columns + j) * DEGREE * DEGREE;
    const along = new Float64Array(DEGREE);
    for (let k = 0; k < DEGREE; k++) along[k] = series(T.pairs, block + k * DEGREE, y);
    return series(along, 0, x);
  }

  // What 1 - c is multiplied by in a layer of sigma_w = 1. The table's own rounding next to s = 0 is up to 6e-8, which
  // hundreds of layers would add up; the limit there is E phi'^2, known to rounding, and puts it right.
  function ratio(T, epsilon, q) {
    const found = pair(T, 0, epsilon * q, (1 - epsilon) * q);
    return epsilon < 1e-6 ? (found * moments(T, q)[1]) / pair(T, 0, 0, q) : found;
  }

  // --- mean field ---

  // The root of f between two ends by bisection; undefined if f has one sign there.
  function bisect(f, low, high) {
    const rising = f(high) > 0;
    if (f(low) > 0 === rising) return undefined;
    for (let i = 0; i < 80; i++) {
      const middle = (low + high) / 2;
      if (f(middle) > 0 === rising) high = middle;
      else low = middle;
    }
    return (low + high) / 2;
  }

  // E phi^2 on a grid of ln q with q0 on it, 32 points to a unit; the same for every scale, so it is kept.
  function sampled(T, q0) {
    if (T.sampled?.q0 === q0) return T.sampled;
    const first = Math.log(q0), last = T.edges[T.edges.length - 1];
    const origin = Math.floor((first - T.edges[0]) * 32), count = origin + Math.floor((last - first) * 32) + 1;
    const t = Float64Array.from({ length: count }, (_, i) => first + (i - origin) / 32);
    T.sampled = { q0, origin, t, square: t.map((at) => curve(T.moments, 3, placeOf(T, at))[0]) };
    return T.sampled;
  }

  // Fixed points of the q map lie where F(q) = (q - sigma_b^2) / E phi^2 is sigma_w^2. From q0 iteration climbs to the
  // next crossing where sigma_w^2 exceeds F, or falls to the next below.
  function settle(T, level, bias, q0) {
    const { origin, t, square } = sampled(T, q0);
    const F = square.map((value, i) => (Math.exp(t[i]) - bias) / value);
    const less = level * (1 - NOISE), more = level * (1 + NOISE);
    if (Math.max(Math.max(...F) - level, level - Math.min(...F)) <= 1e-11 * level) return [q0, "every q is fixed"];
    const up = level > F[origin], side = up ? 1 : -1;
    let i = origin;
    while (i >= 0 && i < F.length && !(up ? F[i] >= more : F[i] <= less)) i += side;
    if (i < 0 || i >= F.length) {
      const q = beyond(T, up ? 1 : 0, level, bias);
      return [q, q === 0 ? "decays to zero" : q === Infinity ? "grows without bound" : "converged"];
    }
    const next = (at) => Math.log(level * curve(T.moments, 3, placeOf(T, at))[0] + bias) - at;
    const root = bisect(next, ...[t[i - side], t[i]].sort((a, b) => a - b)) ?? t[i];
    return [Math.exp(root), runs(F, less, more) > 1 ? "several fixed points" : "converged"];
  }

  // On how many monotone stretches F passes the level by more than its rounding.
  function runs(F, less, more) {
    let count = 0, start = 0;
    for (let i = 1; i < F.length; i++) {
      const turns = i + 1 < F.length && (F[i + 1] - F[i]) * (F[i] - F[i - 1]) < 0;
      if (!turns && i + 1 < F.length) continue;
      if (Math.min(F[start], F[i]) < less && Math.max(F[start], F[i]) >= more) count++;
      start = i;
    }
    return count;
  }

  // The fixed point below the table (end 0) or above it (1); 0 or infinity if there is none.
  function beyond(T, end, level, bias) {
    const tends = level * T.limits[3 * end] - 1;
    if (end === 0 ? !(bias > 0 || tends > 1e-7) : !(tends < -1e-7)) return end === 0 ? 0 : Infinity;
    const f = (t) => Math.log(Math.max(level * moments(T, Math.exp(t))[0] + bias, 1e-305)) - t;
    const [low, high] = ends(T).map(Math.log), least = Math.log(Math.max(bias, 1e-305));
    const root = end === 0 ? bisect(f, least, low) : bisect(f, high, -Math.log(1e-305));
    return root === undefined ? (end === 0 ? 0 : Infinity) : Math.exp(root);
  }

  // -1 / ln factor, in layers; infinite at 1.
  const depthScale = (factor) => (Math.abs(factor - 1) <= CRITICAL ? Infinity : -1 / Math.log(factor) + 0);

  // As vgjax.theory.mean_field.
  function meanField(T, { sigma_w, sigma_b, q0 }) {
    const level = sigma_w ** 2, bias = sigma_b ** 2;
    let [q, status] = settle(T, level, bias, q0);
    const end = q === 0 ? 0 : q === Infinity ? 1 : -1;
    const [, slopeSquare, growth] = moments(T, q);
    const chi = level * (end < 0 ? slopeSquare : T.limits[3 * end + 1]);
    const qSlope = level * (end < 0 ? growth / q : T.limits[3 * end]);
    if (qSlope < -1 && (status === "converged" || status === "several fixed points")) status = "oscillates";
    const [c, cSlope] = fixedCorrelation(T, q, chi, level, end);
    return {
      q_star: q, chi, growth: Math.sqrt(chi), c_star: c, status,
      phase: Math.abs(chi - 1) <= CRITICAL ? "critical" : chi < 1 ? "ordered" : "chaotic",
      xi_q: depthScale(Math.abs(qSlope)), xi_c: depthScale(cSlope), xi_grad: depthScale(chi),
    };
  }

  // c* and the slope of the c map there. The map is convex: it has one fixed point below 1 where its slope at 1
  // exceeds 1. Where q runs to an end the scales no longer matter: what is left is phi / sqrt(E phi^2).
  function fixedCorrelation(T, q, chi, level, end) {
    let slope = chi;
    if (end >= 0) {
      const ratio = T.limits[3 * end + 2], square = moments(T, NEAR[end])[0];
      slope = Math.abs(ratio - 1) < 1e-7 ? 1 : ratio;
      [q, level] = [NEAR[end], square ? NEAR[end] / square : 0];
    }
    if (!(slope > 1 + CRITICAL)) return [1, slope];
    const at = T.homogeneous[0] ? 1 : q;
    const f = (x) => level * ratio(T, x * x, at) - 1;
    const least = Math.sqrt(1e-13);
    // Odd functions without bias have c* = 0 exactly, which the table knows to its rounding.
    const epsilon = f(1) > -1e-9 ? 1 : (bisect(f, least, 1) ?? least) ** 2;
    return [1 - epsilon, level * pair(T, 1, epsilon * at, (1 - epsilon) * at)];
  }

  // --- layer by layer ---

  // As vgjax.theory.propagate for two inputs of equal norm: q_l, 1 - c_l (NaN where q has left the floats), and the sum
  // of ln chi, l = 0 ... depth.
  function propagate(T, { sigma_w, sigma_b, depth, q0, c0 }) {
    const level = sigma_w ** 2, bias = sigma_b ** 2, [tableLow, tableHigh] = ends(T);
    const low = Math.max(PAIRS[0], tableLow), high = Math.min(PAIRS[1], tableHigh);
    const q = new Float64Array(depth + 1).fill(q0), apart = new Float64Array(depth + 1).fill(1 - c0);
    const logChi = new Float64Array(depth + 1);
    for (let l = 0; l < depth; l++) {
      const [square, slopeSquare] = moments(T, q[l]);
      q[l + 1] = level * square + bias;
      logChi[l + 1] = logChi[l] + Math.log(level * slopeSquare);
      const known = Number.isFinite(q[l + 1]) && q[l + 1] > 0 && !Number.isNaN(apart[l]);
      // Far out phi is a power of its argument, and the correlation does not know the common scale of two inputs.
      const before = clip(q[l], low, high), after = before === q[l] ? q[l + 1] : level * moments(T, before)[0];
      const at = T.homogeneous[0] ? 1 : before, epsilon = apart[l];
      const distance = ratio(T, epsilon, at) * epsilon * before;
      apart[l + 1] = known ? clip((level * distance) / after, 0, 1) : NaN;
    }
    return { q, apart, logChi };
  }

  // As vgjax.theory.band for Gaussian kernels of one width: mean and variance of ln ||J_{l<-0} u||^2 over draws.
  function forwardBand(T, { sigma_w, sigma_b, depth, width, q0 }) {
    const level = sigma_w ** 2, bias = sigma_b ** 2, n = width, which = T.widths.indexOf(n);
    const [, segments] = T.shapes.laws, laws = T.laws.subarray(which * segments * 48, (which + 1) * segments * 48);
    const mean = new Float64Array(depth + 1), variance = new Float64Array(depth + 1);
    let q = q0, state = { mean: 0, variance: 0, withGain: 0, overlap: 0 };
    for (let l = 0; l < depth; l++) {
      const t = Math.log(q), [square, slopeSquare] = moments(T, q);
      const [a1, a2, w1, w2, aa, aw, , along] = curve(T.ratios, 8, placeOf(T, t));
      const law = curve(laws, 2, T.homogeneous[0] ? 0 : (t - T.law_axis[0]) / T.law_axis[1]);
      const lambda2 = w1 + w2 - w1 ** 2;
      const gained = w1 * state.mean + (lambda2 / 2) * state.variance + Math.log1p(2 * w1 * state.overlap);
      mean[l + 1] = mean[l] + Math.log(level * slopeSquare) + law[0] + T.norms[2 * which] + gained;
      variance[l + 1] = variance[l] + law[1] + T.norms[2 * which + 1] + 2 * w1 * state.withGain + w1 ** 2 * state.variance;
      q = clip(level * square + bias, T.held[0], T.held[1]);
      // What layers hand on: the fluctuation of ln q, its covariance with the gain, and the overlap of h and u.
      const part = q > 0 ? 1 - bias / q : 0, f1 = part * a1, f2 = part * (a1 + a2) - f1 ** 2;
      const noise = (part ** 2 * (aa - 1)) / n, shared = (part * (aw - 1)) / n;
      state = {
        mean: f1 * state.mean + (f2 / 2) * state.variance - noise / 2,
        variance: f1 ** 2 * state.variance + noise,
        withGain: f1 * (state.withGain + w1 * state.variance) + shared,
        overlap: Math.min(1, (part * (along * state.overlap + aw / n)) / (1 + 2 * w1 * state.overlap)),
      };
    }
    return { mean, variance };
  }

  // ln ||dL/dh^l|| in units of the last layer's: what lies between l and L, backwards as forwards.
  function gradient(T, setting, logChi) {
    const { mean, variance } = forwardBand(T, setting), last = setting.depth;
    return {
      mean: mean.map((value) => (mean[last] - value) / 2),
      deviation: variance.map((value) => Math.sqrt(Math.max(Math.max(variance[last], 0) - Math.max(value, 0), 0)) / 2),
      infinite: logChi.map((value) => (logChi[last] - value) / 2),
    };
  }

  return { meanField, propagate, gradient, moments };
})();
