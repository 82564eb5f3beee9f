// The pictures: three charts by uPlot, and the phase map on a canvas of its own. Colours are read from the style sheet
// whenever something is drawn, so that they follow light and dark.
"use strict";

const pictures = (() => {
  const SATURATED = Math.LN2; // a factor of 2 a layer and more has the full colour
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const shown = (values) => Array.from(values, (value) => (Number.isFinite(value) ? value : null));
  const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  const FONT = '12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif';

  // --- charts ---

  const INTEGERS = [1, 2, 5, 10, 20, 50, 100, 200, 500];

  // Layers to the right; upwards what is given, exponents of 10 where `powers` says so.
  function axes(powers) {
    const common = { stroke: () => colour("quiet"), grid: { stroke: () => colour("grid"), width: 1 },
      ticks: { show: false }, font: FONT, labelFont: FONT };
    const layers = { ...common, size: 24, space: 60, incrs: [1, ...INTEGERS], label: "layer l", labelSize: 16, labelGap: 0 };
    const y = { ...common, size: 52, space: 30 };
    if (powers()) return [layers, { ...y, incrs: INTEGERS, values: (_, ticks) => ticks.map((tick) => `10${words.raised(tick)}`) }];
    return [layers, { ...y, values: (_, ticks) => ticks.map((tick) => String(+tick.toPrecision(6))) }];
  }

  // A range with room, and at least `least` wide.
  const range = (least) => (_, low, high) => {
    if (low === null) return [0, 1];
    const middle = (low + high) / 2, half = Math.max((high - low) / 2, least / 2) * 1.06;
    return [middle - half, middle + half];
  };

  // A chart in an element. `settings`: series (uPlot's), powers (whether y is a power of ten), limits (horizontal
  // lines, [{ at, text }], drawn where they are within), least (height of the y axis at the least), onLayer.
  function chart(element, settings) {
    const options = () => ({
      width: element.clientWidth, height: element.clientHeight, pxAlign: 0,
      legend: { show: false }, cursor: { y: false, points: { size: 7 }, drag: { x: false, y: false } },
      scales: { x: { time: false, range: (_, low, high) => [low, high] }, y: { range: settings.range ?? range(settings.least) } },
      series: [{}, ...settings.series], bands: settings.bands ?? [], axes: axes(settings.powers), padding: [10, 16, 0, 0],
      hooks: { draw: [(plot) => drawLimits(plot, settings.limits(), settings.ends?.()), (plot) => drawLayer(plot, settings.layer())] },
    });
    let plot, data;
    const choose = (event) => {
      const layer = Math.round(plot.posToVal(event.offsetX, "x"));
      if (event.buttons || event.type === "click") settings.onLayer(layer);
    };
    const make = () => {
      plot?.destroy();
      plot = new uPlot(options(), data, element);
      for (const type of ["click", "pointermove"]) plot.over.addEventListener(type, choose);
    };
    new ResizeObserver(() => plot?.setSize({ width: element.clientWidth, height: element.clientHeight })).observe(element);
    return {
      set(values) { data = values; make(); },
      redraw() { plot?.redraw(false); },
    };
  }

  // Each line's words stand at that end from which the curve, which has these values at its ends, is farther; words that
  // would lie on others are left out.
  function drawLimits(plot, limits, ends = [0, Infinity]) {
    const taken = [];
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.font = `${12 * devicePixelRatio}px system-ui, sans-serif`;
    ctx.lineWidth = 1.5 * devicePixelRatio;
    ctx.strokeStyle = ctx.fillStyle = colour("quiet");
    ctx.setLineDash([2 * devicePixelRatio, 3 * devicePixelRatio]);
    for (const { at, text, below } of limits) {
      if (!(at > plot.scales.y.min && at < plot.scales.y.max)) continue;
      const y = plot.valToPos(at, "y", true);
      ctx.beginPath();
      ctx.moveTo(bbox.left, y);
      ctx.lineTo(bbox.left + bbox.width, y);
      ctx.stroke();
      const under = below || y - 16 * devicePixelRatio < bbox.top, inset = 5 * devicePixelRatio;
      const side = Math.abs(at - ends[0]) > Math.abs(at - ends[1]) ? "left" : "right";
      if (taken.some((other) => Math.abs(other - y) < 16 * devicePixelRatio)) continue;
      taken.push(y);
      ctx.textAlign = side;
      ctx.textBaseline = under ? "top" : "bottom";
      const place = [side === "right" ? bbox.left + bbox.width - inset : bbox.left + inset, y + (under ? 3 : -2) * devicePixelRatio];
      haloed(ctx, text, place);
    }
    ctx.restore();
  }

  // Words that can be read on lines.
  function haloed(ctx, text, place) {
    ctx.save();
    ctx.setLineDash([]);
    [ctx.strokeStyle, ctx.lineWidth, ctx.lineJoin] = [colour("paper"), 4 * devicePixelRatio, "round"];
    ctx.strokeText(text, ...place);
    ctx.fillText(text, ...place);
    ctx.restore();
  }

  // The layer that is read, as a thin upright line.
  function drawLayer(plot, layer) {
    const { ctx, bbox } = plot, x = plot.valToPos(layer, "x", true);
    ctx.save();
    ctx.globalAlpha = 0.45;
    ctx.setLineDash([]);
    ctx.lineWidth = devicePixelRatio;
    ctx.strokeStyle = colour("ink");
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    ctx.restore();
  }

  // --- the map ---

  // Colour of ln of the factor a layer: blue where gradients vanish, red where they explode, pale in between.
  function shade(log, palette) {
    if (Number.isNaN(log)) return palette.neutral;
    const part = Math.min(Math.abs(log) / SATURATED, 1) ** 0.7, end = log < 0 ? palette.ordered : palette.chaotic;
    return palette.neutral.map((value, i) => value + (end[i] - value) * part);
  }

  const palette = () => Object.fromEntries(["neutral", "ordered", "chaotic"].map((name) => [name, rgb(colour(name))]));

  // A picture of a field of shape (rows, columns), the first row at the bottom.
  function painted(field, rows, columns) {
    const image = new ImageData(columns, rows), colours = palette();
    field.forEach((log, i) => {
      const row = rows - 1 - Math.floor(i / columns), at = 4 * (row * columns + (i % columns));
      image.data.set([...shade(log, colours), 255], at);
    });
    const canvas = Object.assign(document.createElement("canvas"), { width: columns, height: rows });
    canvas.getContext("2d").putImageData(image, 0, 0);
    return canvas;
  }

  const MARGIN = { left: 44, right: 8, top: 8, bottom: 38 };

  // The map's own coordinates, in CSS pixels: from scales to places and back.
  function frame(canvas, [largestW, largestB]) {
    const width = canvas.clientWidth - MARGIN.left - MARGIN.right, height = canvas.clientHeight - MARGIN.top - MARGIN.bottom;
    return {
      width, height,
      x: (sigma_w) => MARGIN.left + (sigma_w / largestW) * width,
      y: (sigma_b) => MARGIN.top + (1 - sigma_b / largestB) * height,
      scales: (x, y) => [((x - MARGIN.left) / width) * largestW, (1 - (y - MARGIN.top) / height) * largestB],
    };
  }

  function prepared(canvas) {
    const context = canvas.getContext("2d"), ratio = devicePixelRatio;
    canvas.width = Math.round(canvas.clientWidth * ratio);
    canvas.height = Math.round(canvas.clientHeight * ratio);
    context.scale(ratio, ratio);
    context.font = FONT;
    return context;
  }

  // The map of an activation's tables T with the point on it.
  function map(canvas, T, largest, [rows, columns], point) {
    const context = prepared(canvas), at = frame(canvas, largest);
    context.imageSmoothingEnabled = true;
    context.drawImage(painted(T.map, rows, columns), MARGIN.left, MARGIN.top, at.width, at.height);
    hatch(context, at, T.unbounded, rows, columns);
    drawEdge(context, at, T.edge, largest[1]);
    drawAxes(context, at, largest);
    drawPoint(context, at, point);
  }

  // Slanted lines over the cells where q grows without bound, so that it is told without colour.
  function hatch(context, at, field, rows, columns) {
    context.save();
    context.beginPath();
    const [w, h] = [at.width / columns, at.height / rows];
    field.forEach((there, i) => {
      if (there) context.rect(MARGIN.left + (i % columns) * w, MARGIN.top + (rows - 1 - Math.floor(i / columns)) * h, w + 0.5, h + 0.5);
    });
    context.clip();
    context.strokeStyle = colour("ink");
    context.globalAlpha = 0.16;
    context.beginPath();
    for (let x = -at.height; x < at.width + at.height; x += 8) {
      context.moveTo(MARGIN.left + x, MARGIN.top + at.height);
      context.lineTo(MARGIN.left + x + at.height, MARGIN.top);
    }
    context.stroke();
    context.restore();
  }

  function drawEdge(context, at, edge, largestB) {
    context.save();
    context.beginPath();
    context.rect(MARGIN.left, MARGIN.top, at.width, at.height);
    context.clip();
    for (const [style, width] of [[colour("paper"), 4], [colour("ink"), 2]]) {
      context.beginPath();
      edge.forEach((sigma_w, i) => {
        const y = at.y((i / (edge.length - 1)) * largestB);
        if (Number.isNaN(sigma_w)) return;
        if (i && !Number.isNaN(edge[i - 1])) context.lineTo(at.x(sigma_w), y);
        else context.moveTo(at.x(sigma_w), y);
        // A line of one point, as ReLU's at sigma_b = 0, is a short stroke.
        if (!(edge[i - 1] >= 0) && !(edge[i + 1] >= 0)) context.lineTo(at.x(sigma_w), y - 7);
      });
      [context.strokeStyle, context.lineWidth] = [style, width];
      context.stroke();
    }
    context.restore();
  }

  function drawAxes(context, at, [largestW, largestB]) {
    context.strokeStyle = colour("line");
    context.strokeRect(MARGIN.left, MARGIN.top, at.width, at.height);
    context.fillStyle = colour("quiet");
    const steps = [0, 0.25, 0.5, 0.75, 1], text = (value) => String(+value.toFixed(2));
    for (const part of steps) {
      context.textAlign = part === 1 ? "right" : "center";
      context.textBaseline = "top";
      context.fillText(text(part * largestW), part === 1 ? at.x(largestW) + 4 : at.x(part * largestW), at.y(0) + 5);
      context.textAlign = "right";
      context.textBaseline = "middle";
      context.fillText(text(part * largestB), MARGIN.left - 6, at.y(part * largestB));
    }
    scaleName(context, "weight scale σ", "w", MARGIN.left + at.width / 2, at.y(0) + 34);
    context.save();
    context.translate(11, MARGIN.top + at.height / 2);
    context.rotate(-Math.PI / 2);
    scaleName(context, "bias scale σ", "b", 0, 4);
    context.restore();
  }

  // A name with a subscript, centred; canvases have none of their own.
  function scaleName(context, name, index, x, y) {
    context.textAlign = "left";
    context.textBaseline = "alphabetic";
    const width = context.measureText(name).width, start = x - width / 2 - 4;
    context.fillText(name, start, y);
    context.save();
    context.font = FONT.replace("12px", "9px");
    context.fillText(index, start + width + 1, y + 3);
    context.restore();
  }

  function drawPoint(context, at, { sigma_w, sigma_b }) {
    const [x, y] = [at.x(sigma_w), at.y(sigma_b)];
    for (const [style, width] of [[colour("paper"), 5], [colour("ink"), 2.2]]) {
      [context.strokeStyle, context.lineWidth] = [style, width];
      context.beginPath();
      context.arc(x, y, 7, 0, 2 * Math.PI);
      context.stroke();
    }
    context.fillStyle = colour("ink");
    context.beginPath();
    context.arc(x, y, 1.8, 0, 2 * Math.PI);
    context.fill();
  }

  function bar(canvas) {
    const context = prepared(canvas), colours = palette(), width = canvas.clientWidth;
    for (let x = 0; x < width; x++) {
      context.fillStyle = `rgb(${shade(((2 * x) / width - 1) * SATURATED, colours).map(Math.round).join(",")})`;
      context.fillRect(x, 0, 1.5, canvas.clientHeight);
    }
  }

  return { chart, map, bar, frame, shown, colour };
})();
