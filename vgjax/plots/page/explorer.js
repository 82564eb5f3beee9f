// The page: one state, one function that shows it, and the inputs that change it.
"use strict";

const explorer = (() => {
  const $ = (id) => document.getElementById(id);
  const clip = (x, low, high) => Math.min(Math.max(x, low), high);
  const STEPS = 1000; // of the sliders that run over a range of numbers

  // --- tables ---

  // An activation's arrays by name, from the text they came in: compressed, all first bytes before all second ones.
  async function unpacked({ blob, shapes }) {
    const packed = Uint8Array.from(atob(blob), (each) => each.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const planes = new Uint8Array(await new Response(stream).arrayBuffer()), count = planes.length / 8;
    const bytes = new Uint8Array(planes.length);
    for (let plane = 0; plane < 8; plane++) {
      for (let i = 0; i < count; i++) bytes[8 * i + plane] = planes[plane * count + i];
    }
    const numbers = new Float64Array(bytes.buffer), T = { shapes };
    let at = 0;
    for (const [name, shape] of Object.entries(shapes)) {
      const size = shape.reduce((a, b) => a * b, 1);
      T[name] = numbers.subarray(at, (at += size));
    }
    return T;
  }

  const tables = new Map();
  const byName = Object.fromEntries(given.activations.map((each) => [each.name, each]));
  const load = (name) => {
    if (!tables.has(name)) tables.set(name, unpacked(byName[name]));
    return tables.get(name);
  };

  // --- the state ---

  const largestW = (name) => byName[name].largest;
  const logarithmic = (low, high) => ({ low, high, of: (part) => low * (high / low) ** part, to: (x) => Math.log(x / low) / Math.log(high / low) });
  const linear = (low, high) => ({ low, high, of: (part) => low + part * (high - low), to: (x) => (x - low) / (high - low) });
  const rounded = (x, digits) => Number(x.toFixed(digits));

  // What each number may be: its range, what it is rounded to, and how its slider runs.
  const KINDS = {
    sigma_w: { scale: (s) => linear(0, largestW(s.activation)), keep: (x) => Math.max(x, 0.01), slid: (x) => rounded(x, 3), step: 0.01 },
    sigma_b: { scale: () => linear(0, given.largestB), keep: (x) => Math.round(x * given.stepsPerB) / given.stepsPerB, step: 0.01, steps: given.largestB * given.stepsPerB },
    depth: { scale: () => logarithmic(2, 1000), keep: Math.round, step: 1, steps: 200 },
    width: { scale: () => logarithmic(given.widths[0], given.widths.at(-1)), keep: nearestWidth, step: "any", steps: given.widths.length - 1 },
    q0: { scale: () => logarithmic(0.01, given.largestQ0), keep: (x) => x, slid: (x) => Number(x.toPrecision(2)), step: "any" },
    c0: { scale: () => linear(0, 0.999), keep: (x) => x, slid: (x) => rounded(x, 2), step: "any", steps: 100 },
    layer: { scale: (s) => linear(0, s.depth), keep: Math.round, step: 1, steps: 1000 },
  };

  function nearestWidth(x) {
    const apart = (width) => Math.abs(Math.log(width / x));
    return given.widths.reduce((a, b) => (apart(b) < apart(a) ? b : a));
  }

  let state = {
    activation: given.activations[0].name, sigma_w: 1.5, sigma_b: 0.05, depth: 100, width: 256, q0: 1, c0: 0.5, layer: 0,
    format: "float32",
  };

  // A state with what is asked for in it, as far as it makes sense.
  function changed(state, asked) {
    const next = { ...state };
    if (byName[asked.activation]) next.activation = asked.activation;
    if (words.FORMATS[asked.format]) next.format = asked.format;
    for (const [name, kind] of Object.entries(KINDS)) {
      const value = asked[name] === undefined || asked[name] === "" ? NaN : Number(asked[name]), { low, high } = kind.scale(next);
      next[name] = kind.keep(clip(Number.isFinite(value) ? value : next[name], low, high));
    }
    return next;
  }

  const fromHash = () => Object.fromEntries(new URLSearchParams(location.hash.slice(1)));

  // --- what is shown ---

  let T, results, charts;

  function computed() {
    const point = theory.meanField(T, state), { q, apart, logChi } = theory.propagate(T, state);
    return { point, q, apart, gradient: theory.gradient(T, state, logChi) };
  }

  function show() {
    results = computed();
    showInputs();
    showNumbers();
    showLayer();
    showCharts();
    showMap();
    history.replaceState(null, "", `#${new URLSearchParams(state)}`);
  }

  function showInputs() {
    $("activation").value = state.activation;
    $("format").value = state.format;
    for (const [name, kind] of Object.entries(KINDS)) {
      const scale = kind.scale(state), steps = kind.steps ?? STEPS, range = $(`${name}-range`), field = $(name);
      Object.assign(range, { min: 0, max: steps, step: 1 });
      range.value = Math.round(scale.to(state[name]) * steps);
      range.setAttribute("aria-valuetext", state[name]);
      Object.assign(field, { min: scale.low, max: scale.high, step: "any" });
      if (document.activeElement !== field || Number(field.value) !== state[name]) field.value = state[name];
    }
  }

  const edgeHere = () => T.edge[Math.round(state.sigma_b * given.stepsPerB)];
  const reasonHere = () => byName[state.activation].reasons[Math.round(state.sigma_b * given.stepsPerB)];

  function showNumbers() {
    const { point, gradient } = results, [lead, rest] = words.verdict(point, gradient, state), edge = edgeHere();
    document.documentElement.style.setProperty("--phase", `var(--${point.phase})`);
    $("verdict").replaceChildren(Object.assign(document.createElement("b"), { textContent: lead }), rest);
    for (const name of ["chi", "growth", "xi_grad", "q_star", "xi_q", "xi_c"]) {
      $(`out-${name}`).textContent = words.number(point[name]);
    }
    $("out-c_star").textContent = words.decimals(point.c_star, 5);
    for (const name of ["phase", "status"]) $(`out-${name}`).textContent = point[name];
    $("out-edge").textContent = Number.isNaN(edge) ? "none" : words.number(edge);
    $("out-width").textContent = state.width;
    $("out-format").textContent = state.format;
    $("note").textContent = words.note(point.status, reasonHere(), results.apart.findIndex(Number.isNaN));
    $("to-edge").disabled = Number.isNaN(edge) || edge > largestW(state.activation);
    $("hatched").hidden = !T.unbounded.some(Boolean);
    $("floats").replaceChildren(...Object.keys(words.FORMATS).map((format) => {
      const row = document.createElement("tr"), head = Object.assign(document.createElement("th"), { scope: "row", textContent: format });
      const cells = words.floats(gradient.mean, state.width, format).map((text, i) =>
        Object.assign(document.createElement("td"), { textContent: text, id: `out-${format}-${["norm", "entries"][i]}` }));
      row.append(head, ...cells);
      return row;
    }));
  }

  function showLayer() {
    const { q, apart, gradient } = results, l = state.layer, tenth = (log) => words.log(log / words.LN10);
    $("out-q").textContent = words.number(q[l]);
    $("out-c").textContent = words.decimals(1 - apart[l], 5);
    $("out-apart").textContent = words.number(apart[l]);
    $("out-mean").textContent = tenth(gradient.mean[l]);
    $("out-deviation").textContent = tenth(gradient.deviation[l]);
    $("out-infinite").textContent = tenth(gradient.infinite[l]);
  }

  // --- charts ---

  const wide = () => {
    const logs = Array.from(results.q, Math.log10).filter(Number.isFinite);
    return Math.max(...logs) - Math.min(...logs) > 2;
  };

  function makeCharts() {
    const line = (stroke, more = {}) => ({ stroke, width: 2, pxAlign: 0, points: { show: false }, ...more });
    const phase = () => pictures.colour(results.point.phase), ink = () => pictures.colour("ink"), thin = { width: 0.5 };
    const common = { layer: () => state.layer, onLayer: (layer) => set({ layer }) };
    const faint = () => `${phase()}40`;
    charts = {
      gradient: pictures.chart($("gradient"), {
        ...common, powers: () => true, least: 2, limits: floatLimits,
        ends: () => [results.gradient.mean[0] / words.LN10, 0],
        series: [line(phase, thin), line(phase, thin), line(phase), line(ink, { width: 1.4, dash: [6, 5] })],
        bands: [{ series: [1, 2], fill: faint }],
      }),
      variance: pictures.chart($("variance"), {
        ...common, powers: wide, least: 0.02, limits: () => settled(wide() ? Math.log10(results.point.q_star) : results.point.q_star, "q*"),
        series: [line(ink)],
      }),
      correlation: pictures.chart($("correlation"), {
        ...common, powers: () => false, range: () => [-0.04, 1.08], limits: () => settled(results.point.c_star, "c*"), series: [line(ink)],
      }),
    };
  }

  const settled = (at, text) => (Number.isFinite(at) ? [{ at, text }] : []);

  function floatLimits() {
    const { least, most } = words.FORMATS[state.format], entry = Math.log(state.width) / 2, at = (log) => log / words.LN10;
    return [
      { at: at(least / 2 + entry), text: `below: ${state.format} reads the norm as 0`, below: true },
      { at: at(least + entry), text: "below: entries are 0", below: true },
      { at: at(most / 2), text: `above: ${state.format} reads the norm as ∞` },
      { at: at(most + entry), text: "above: entries are ∞" },
    ];
  }

  function showCharts() {
    const { q, apart, gradient } = results, layers = Array.from(q, (_, l) => l), tenth = (log) => log / words.LN10;
    const side = (sign) => pictures.shown(gradient.mean.map((mean, l) => tenth(mean + sign * gradient.deviation[l])));
    const tenths = (logs) => pictures.shown(logs.map(tenth));
    charts.gradient.set([layers, side(1), side(-1), tenths(gradient.mean), tenths(gradient.infinite)]);
    charts.variance.set([layers, pictures.shown(wide() ? q.map(Math.log10) : q)]);
    charts.correlation.set([layers, pictures.shown(apart.map((each) => 1 - each))]);
  }

  function showMap() {
    const canvas = $("map"), { point } = results;
    pictures.map(canvas, T, [largestW(state.activation), given.largestB], given.mapShape, state);
    canvas.setAttribute("aria-label",
      `Phase map of ${state.activation}: weight scale ${words.number(state.sigma_w)}, bias scale ${state.sigma_b}: ${point.phase}. ` +
      "Arrow keys move the point.");
  }

  // --- what changes it ---

  // Change the state and show it; resolves when it is shown.
  let turn = Promise.resolve();
  function set(asked) {
    turn = turn.then(async () => {
      state = changed(state, asked);
      if (T && Object.keys(asked).join() === "layer") return showLayerOnly();
      T = await load(state.activation);
      show();
    });
    return turn;
  }

  function showLayerOnly() {
    showInputs();
    showLayer();
    for (const each of Object.values(charts)) each.redraw();
    history.replaceState(null, "", `#${new URLSearchParams(state)}`);
  }

  function listen() {
    for (const name of ["activation", "format"]) $(name).addEventListener("change", () => set({ [name]: $(name).value }));
    for (const [name, kind] of Object.entries(KINDS)) {
      const range = $(`${name}-range`), field = $(name), slid = kind.slid ?? kind.keep;
      range.addEventListener("input", () => set({ [name]: slid(kind.scale(state).of(range.value / range.max)) }));
      field.addEventListener("change", () => set({ [name]: field.value }));
    }
    $("controls").addEventListener("submit", (event) => event.preventDefault());
    $("to-edge").addEventListener("click", () => set({ sigma_w: edgeHere() }));
    listenToMap($("map"));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawn);
    new ResizeObserver(() => results && showMap()).observe($("map"));
    addEventListener("hashchange", () => set(fromHash()));
  }

  function redrawn() {
    pictures.bar($("bar"));
    showCharts();
    showMap();
  }

  function listenToMap(canvas) {
    const largest = () => [largestW(state.activation), given.largestB];
    const point = (event) => {
      const [sigma_w, sigma_b] = pictures.frame(canvas, largest()).scales(event.offsetX, event.offsetY);
      set({ sigma_w: rounded(sigma_w, 3), sigma_b: Math.max(sigma_b, 0) });
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      point(event);
    });
    canvas.addEventListener("pointermove", (event) => event.buttons && point(event));
    const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    canvas.addEventListener("keydown", (event) => {
      const move = MOVES[event.key];
      if (!move) return;
      event.preventDefault();
      const times = event.shiftKey ? 10 : 1, step = largest()[0] / 400;
      set({ sigma_w: rounded(state.sigma_w + move[0] * times * step, 4), sigma_b: state.sigma_b + (move[1] * times) / given.stepsPerB });
    });
  }

  const ready = (async () => {
    makeCharts();
    listen();
    pictures.bar($("bar"));
    await set(fromHash());
  })();

  return { set, get: () => ({ ...state }), ready };
})();
window.explorer = explorer;
