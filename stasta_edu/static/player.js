// The player of stasta_edu: frames, overlays and curves under one scrubber, all of it in the browser.
//
// One file, two coats. As an ES module its default export is an anywidget (`render`), for notebooks with a kernel; inlined into a page
// it is started by `mountAll()`. Both call `mount(element, spec, ask)`. Nothing is ever fetched: frames and maps travel inside `spec`,
// which stasta_edu/widgets.py writes (`Player.spec`). All text reaches the page through textContent, so labels cannot inject markup.
// Curves and matrices are plotly's: drawn once, with a play head of our own above them, so that playing costs plotly nothing.

const INK = ["#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#0072B2", "#D55E00"]; // Okabe-Ito: told apart with any colour vision
const WHEEL = [[230, 159, 0], [204, 121, 167], [0, 114, 178], [0, 158, 115]];              // right, down, left, up
const SPEEDS = [0.25, 0.5, 1, 2, 4], CURVE = 92; // pixels
const ICONS = {
  play: "M7 4.5v15l12.5-7.5z", pause: "M6 4.5h4.2v15H6zM13.8 4.5H18v15h-4.2z",
  back: "M5 5h2.6v14H5zM19 5v14L8.6 12z", forward: "M16.4 5H19v14h-2.6zM5 5l10.4 7L5 19z",
  loop: "M17 3l4 4-4 4V8H8a3 3 0 0 0-3 3v1H3v-1a5 5 0 0 1 5-5h9zM7 21l-4-4 4-4v3h9a3 3 0 0 0 3-3v-1h2v1a5 5 0 0 1-5 5H7z",
};

// ------------------------------------------------------------------ small helpers
const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
const signedText = (x, digits = 3) => (x > 0 ? "+" : x < 0 ? "\u2212" : "") + Math.abs(x).toPrecision(digits);
const range = (n) => Array.from({ length: n }, (_, i) => i);

function number(x) { // short, for legends: 0.5, 12, 1.3e-5; a real minus sign
  const a = Math.abs(x), text = a === 0 ? "0" : a >= 100 ? a.toFixed(0) : a >= 0.01 ? String(+a.toPrecision(2)) : a.toExponential(1);
  return (x < 0 ? "\u2212" : "") + text;
}

function make(tag, attributes = {}, ...children) { // an HTML element; strings become text nodes
  const element = document.createElement(tag);
  if (["button", "input", "select"].includes(tag)) element.dataset.lmSuppressShortcuts = "true"; // JupyterLab leaves keys alone where the focused element says so
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function draw(tag, attributes = {}, text) { // an SVG element
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

const icon = (name) => { const svg = draw("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }); svg.append(draw("path", { d: ICONS[name] })); return svg; };

function nearest(at, n) { // for each of n frames: which of the sampled frames `at` is nearest (the earlier one of two equally near)
  if (!at) return range(n);
  return range(n).map((t) => at.reduce((best, a, i) => (Math.abs(a - t) < Math.abs(at[best] - t) ? i : best), 0));
}

async function decode(base64, mime) { // bytes -> ImageBitmap, without a request and without any change of the values
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  return createImageBitmap(new Blob([bytes], { type: mime }), { premultiplyAlpha: "none", colorSpaceConversion: "none" });
}

async function unpack(layer) { // one PNG with all maps side by side -> for each map its bytes, interleaved RGBA
  const sheet = await decode(layer.png, "image/png");
  const canvas = new OffscreenCanvas(sheet.width, sheet.height), context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(sheet, 0, 0);
  return range(layer.n).map((i) => context.getImageData((i % layer.cols) * layer.w, Math.floor(i / layer.cols) * layer.h, layer.w, layer.h).data);
}

const enlarged = new WeakMap();
function crisp(picture, width) { // a small frame first has its pixels repeated, then is scaled smoothly: edges stay sharp, steps stay soft
  const k = Math.min(4, Math.round(width / picture.width / 3));
  if (k < 2) return picture;
  if (enlarged.get(picture)?.width !== k * picture.width) {
    const canvas = new OffscreenCanvas(k * picture.width, k * picture.height), context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    enlarged.set(picture, canvas);
  }
  return enlarged.get(picture);
}

// ------------------------------------------------------------------ colours
function ramp(anchors) { // a colour map as 256 RGB triples, linear between the anchors "rrggbb"
  const rgb = anchors.map((hex) => [0, 2, 4].map((k) => parseInt(hex.slice(k, k + 2), 16)));
  return range(256).map((i) => {
    const x = (i / 255) * (rgb.length - 1), k = Math.min(Math.floor(x), rgb.length - 2);
    return [0, 1, 2].map((c) => Math.round(rgb[k][c] + (x - k) * (rgb[k + 1][c] - rgb[k][c])));
  });
}

function fade(code, signed) { // opacity of a value: what is near zero lets the picture through
  return clamp((signed ? Math.abs(code - 128) / 127 : (code - 1) / 254) * 2.5, 0, 1);
}

function hue(dx, dy) { // direction -> colour, four anchors, blended along the circle
  const turn = ((Math.atan2(dy, dx) / (2 * Math.PI) + 1) % 1) * 4, k = Math.floor(turn) % 4, f = turn - Math.floor(turn);
  return [0, 1, 2].map((c) => WHEEL[k][c] * (1 - f) + WHEEL[(k + 1) % 4][c] * f);
}

function sample(data, w, h, x, y, channel, empty) { // bilinear, cell centres at .5; codes equal to `empty` do not take part
  const x0 = Math.floor(x - 0.5), y0 = Math.floor(y - 0.5);
  let sum = 0, weight = 0;
  for (let j = 0; j < 2; j++) for (let i = 0; i < 2; i++) {
    const value = data[(clamp(y0 + j, 0, h - 1) * w + clamp(x0 + i, 0, w - 1)) * 4 + channel];
    if (value === empty) continue;
    const part = (i ? x - 0.5 - x0 : 1 - (x - 0.5 - x0)) * (j ? y - 0.5 - y0 : 1 - (y - 0.5 - y0));
    sum += part * value; weight += part;
  }
  return weight > 0 ? sum / weight : null;
}

// ------------------------------------------------------------------ layers: each returns draw(context, width, height, index)
function paint(w, h, colour) { // a small canvas, pixel by pixel
  const canvas = new OffscreenCanvas(w, h), context = canvas.getContext("2d"), image = context.createImageData(w, h);
  for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) {
    const rgba = colour((x + 0.5) / w, (y + 0.5) / h);
    if (rgba) image.data.set(rgba, (y * w + x) * 4);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

function once(build) { // remember the last few results by index: between two sampled frames nothing is computed again
  const kept = new Map();
  return (index) => {
    if (!kept.has(index)) { kept.set(index, build(index)); if (kept.size > 64) kept.delete(kept.keys().next().value); }
    return kept.get(index);
  };
}

function fine(w, h, smooth) { // size at which a map is painted before the browser scales it up
  const k = smooth ? Math.max(1, Math.ceil(112 / Math.max(w, h))) : 1;
  return [w * k, h * k];
}

function heatLayer(layer, maps, colours) {
  const table = ramp(colours[layer.cmap]), [fw, fh] = fine(layer.w, layer.h, layer.smooth);
  const picture = once((index) => paint(fw, fh, (u, v) => {
    const code = sample(maps[index], layer.w, layer.h, u * layer.w, v * layer.h, 0, 0); // code 0: no value here
    if (code === null) return null;
    const [r, g, b] = table[clamp(Math.round((code - 1) * 255 / 254), 0, 255)];
    return [r, g, b, 255 * fade(code, layer.signed)];
  }));
  return (context, width, height, index) => {
    context.imageSmoothingEnabled = layer.smooth;
    context.drawImage(picture(index), 0, 0, width, height);
  };
}

function vectorLayer(layer, maps) {
  const unit = (code) => (code - 128) / 127, [fw, fh] = fine(layer.w, layer.h, true);
  const trust = (data, k) => (layer.confidence ? data[k + 2] / 255 : 1);
  const flow = once((index) => paint(fw, fh, (u, v) => {
    const [dx, dy, c] = [0, 1, 2].map((k) => sample(maps[index], layer.w, layer.h, u * layer.w, v * layer.h, k, -1));
    const x = unit(dx), y = unit(dy), size = clamp(Math.hypot(x, y), 0, 1);
    return size < 0.03 ? null : [...hue(x, y), 255 * Math.sqrt(size) * (layer.confidence ? c / 255 : 1)];
  }));
  const wheel = (context, width, height, index) => {
    context.fillStyle = "rgba(255,255,255,.78)"; context.fillRect(0, 0, width, height); // a veil: hue is read against white, the picture shines through
    context.drawImage(flow(index), 0, 0, width, height);
  };
  const arrows = (context, width, height, index, scale) => {
    const columns = Math.min(layer.w, Math.round(width / (26 * scale))), rows = Math.max(1, Math.round(columns * height / width));
    const gain = ARROW * scale, data = maps[index];
    for (let j = 0; j < rows; j++) for (let i = 0; i < columns; i++) {
      const x = (i + 0.5) / columns, y = (j + 0.5) / rows;
      const k = (Math.floor(y * layer.h) * layer.w + Math.floor(x * layer.w)) * 4;
      const dx = unit(data[k]) * gain, dy = unit(data[k + 1]) * gain, sure = trust(data, k);
      if (Math.hypot(dx, dy) < 5 * scale || sure < 0.04) continue;
      arrow(context, x * width, y * height, dx, dy, scale, sure);
    }
  };
  return (context, width, height, index, scale) => (layer.style === "wheel" ? wheel : arrows)(context, width, height, index, scale);
}

const ARROW = 56; // screen pixels of the longest arrow, the same in all panels so that they can be compared

function arrow(context, x, y, dx, dy, scale, alpha) { // centred on (x, y); white with a dark edge, to be seen on any picture
  const length = Math.hypot(dx, dy), head = Math.min(6 * scale, length * 0.55), angle = Math.atan2(dy, dx);
  const x0 = x - dx / 2, y0 = y - dy / 2, x1 = x + dx / 2, y1 = y + dy / 2, before = context.globalAlpha;
  const path = new Path2D();
  path.moveTo(x0, y0); path.lineTo(x1, y1);
  for (const side of [-0.5, 0.5]) { path.moveTo(x1, y1); path.lineTo(x1 - head * Math.cos(angle + side), y1 - head * Math.sin(angle + side)); }
  context.globalAlpha = before * alpha; context.lineCap = context.lineJoin = "round";
  context.strokeStyle = "rgba(0,0,0,.75)"; context.lineWidth = 3.6 * scale; context.stroke(path);
  context.strokeStyle = "#fff"; context.lineWidth = 1.7 * scale; context.stroke(path);
  context.globalAlpha = before;
}

function contour(inside, w, h) { // marching squares on cell centres: a line around the cells where `inside` is true
  const path = new Path2D(), at = (x, y) => x >= 0 && y >= 0 && x < w && y < h && inside(x, y);
  const line = (x0, y0, x1, y1) => { path.moveTo(x0, y0); path.lineTo(x1, y1); };
  for (let y = -1; y < h; y++) for (let x = -1; x < w; x++) {
    const code = at(x, y) + 2 * at(x + 1, y) + 4 * at(x + 1, y + 1) + 8 * at(x, y + 1);
    if (code === 0 || code === 15) continue;
    const X = x + 0.5, Y = y + 0.5, top = [X + 0.5, Y], right = [X + 1, Y + 0.5], bottom = [X + 0.5, Y + 1], left = [X, Y + 0.5];
    const pieces = { 1: [left, top], 2: [top, right], 3: [left, right], 4: [right, bottom], 6: [top, bottom], 7: [left, bottom], 8: [bottom, left],
      9: [bottom, top], 11: [bottom, right], 12: [right, left], 13: [right, top], 14: [top, left], 5: [left, top, right, bottom], 10: [top, right, bottom, left] }[code];
    for (let k = 0; k < pieces.length; k += 2) line(...pieces[k], ...pieces[k + 1]);
  }
  return path;
}

function outlineLayer(layer, maps) {
  const id = (data, k) => Math.round(data[4 * k] / layer.step);
  const shapes = once((index) => {
    const data = maps[index], found = new Map();
    for (let k = 0; k < layer.w * layer.h; k++) {
      const value = id(data, k);
      if (!value) continue;
      const x = k % layer.w, y = Math.floor(k / layer.w), box = found.get(value) || [x, y, x, y];
      found.set(value, [Math.min(box[0], x), Math.min(box[1], y), Math.max(box[2], x), Math.max(box[3], y)]);
    }
    return [...found].map(([value, box]) => ({ value, box, path: contour((x, y) => id(data, y * layer.w + x) === value, layer.w, layer.h) }));
  });
  return (context, width, height, index, scale) => {
    const zoom = width / layer.w;
    for (const { value, path } of shapes(index)) {
      context.save(); context.scale(zoom, height / layer.h); context.lineCap = context.lineJoin = "round";
      context.strokeStyle = "rgba(0,0,0,.7)"; context.lineWidth = 4.2 * scale / zoom; context.stroke(path);
      context.strokeStyle = INK[(value - 1) % INK.length]; context.lineWidth = 2.2 * scale / zoom; context.stroke(path);
      context.restore();
    }
    const placed = [];
    for (const { value, box } of shapes(index)) {
      const text = layer.names[value - 1];
      if (text) tag(context, text, INK[(value - 1) % INK.length], box[0] * zoom, (box[1] * height) / layer.h, width, scale, placed);
    }
  };
}

function tag(context, text, colour, x, y, width, scale, placed) { // a small name plate just above a shape, inside the picture and off the other plates
  context.font = `600 ${11 * scale}px system-ui, sans-serif`;
  const w = context.measureText(text).width + 14 * scale, h = 16 * scale;
  const left = clamp(x, 2 * scale, width - w - 2 * scale);
  let top = Math.max(2 * scale, y - h - 4 * scale);
  for (const p of placed) if (left < p.left + p.w && p.left < left + w && Math.abs(top - p.top) < h) top = p.top + h + 2 * scale;
  placed.push({ left, top, w });
  context.fillStyle = "rgba(17,17,17,.82)"; context.beginPath(); context.roundRect(left, top, w, h, 4 * scale); context.fill();
  context.fillStyle = colour; context.beginPath(); context.roundRect(left, top, 4 * scale, h, [4 * scale, 0, 0, 4 * scale]); context.fill();
  context.fillStyle = "#fff"; context.textBaseline = "middle"; context.fillText(text, left + 9 * scale, top + h / 2 + 0.5 * scale);
}

const LAYERS = { heat: heatLayer, vectors: vectorLayer, outline: outlineLayer };

// ------------------------------------------------------------------ legends
function legend(layer, colours) {
  if (layer.kind === "heat") return heatLegend(layer, ramp(colours[layer.cmap]));
  if (layer.kind === "vectors") return layer.style === "wheel" ? wheelLegend(layer) : arrowLegend(layer);
  return make("div", { class: "sta-names" }, ...layer.names.map((name, i) => make("span", {},
    Object.assign(make("i", { class: "sta-swatch" }), { style: `border-color:${INK[i % INK.length]}` }), name)));
}

function heatLegend(layer, table) {
  const stops = range(17).map((k) => { const code = 1 + k * 254 / 16; return `rgba(${table[Math.round(k * 255 / 16)]},${fade(code, layer.signed)})`; });
  const bar = make("div", { class: "sta-bar", role: "img", "aria-label": `colour scale from ${number(layer.min)} to ${number(layer.max)}` });
  bar.style.backgroundImage = `linear-gradient(90deg, ${stops.join(",")})`;
  const middle = layer.signed ? 0 : (layer.min + layer.max) / 2;
  return make("div", { class: "sta-scale" }, bar, make("div", { class: "sta-ticks" }, ...[layer.min, middle, layer.max].map((x) => make("span", {}, number(x)))));
}

function arrowLegend(layer) { // an arrow of the largest round number of pixels, at the length at which it is drawn above
  const nice = [50, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05].find((x) => x <= layer.max * 1.001) || layer.max;
  const length = (nice / layer.max) * ARROW, svg = draw("svg", { width: Math.ceil(length) + 12, height: 14, "aria-hidden": "true", class: "sta-arrow" });
  const end = length + 6, head = Math.min(6, length * 0.55);
  svg.append(draw("path", { d: `M6 7H${end}M${end - head * 0.88} ${7 - head * 0.48}L${end} 7L${end - head * 0.88} ${7 + head * 0.48}` }));
  return make("div", { class: "sta-inline" }, svg, [`${number(nice)} ${layer.unit}`, layer.cut && `cut at ${number(layer.max)}`, layer.confidence && "faint: unsure"].filter(Boolean).join(" \u00b7 "));
}

function wheelLegend(layer) {
  const size = 44, canvas = make("canvas", { width: size * 2, height: size * 2, class: "sta-wheel", role: "img", "aria-label": "colour wheel: hue is the direction of motion, saturation its size" });
  const disc = paint(size * 2, size * 2, (u, v) => {
    const x = 2 * u - 1, y = 2 * v - 1, r = Math.hypot(x, y);
    return r > 1 ? null : [...hue(x, y), 255 * Math.sqrt(r)];
  });
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff"; context.beginPath(); context.arc(size, size, size, 0, 7); context.fill(); context.drawImage(disc, 0, 0);
  return make("div", { class: "sta-inline" }, canvas, make("span", {}, "hue: direction", make("br"), `rim: ${number(layer.max)} ${layer.unit}${layer.cut ? " or more" : ""}`));
}

// ------------------------------------------------------------------ tracks under the frames
function curveOf(track, n) { // where the values stand on the time line
  return { at: track.at || range(n), index: nearest(track.at, n) };
}

function ticks(low, high) { // a few round numbers between low and high
  const span = high - low || 1, step = [1, 2, 5, 10].map((k) => k * 10 ** Math.floor(Math.log10(span / 2))).find((s) => span / s <= 3) || span;
  return range(7).map((k) => Math.ceil(low / step) * step + k * step).filter((y) => y <= high + 1e-9 * span);
}

function pattern(id) { // diagonal lines: decisive segments are told by pattern and label, not by colour alone
  const p = draw("pattern", { id, width: 7, height: 7, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" });
  p.append(draw("rect", { width: 7, height: 7, class: "sta-decisive" }), draw("line", { x1: 0, y1: 0, x2: 0, y2: 7, class: "sta-hatch" }));
  return p;
}

function plotCurve(track, n, colour) { // plotly's traces and layout; the x axis is the time line, frame t lies between t - 0.5 and t + 0.5
  const { at } = curveOf(track, n), data = [], runs = [[]]; // runs: stretches without a missing value
  track.values.forEach((v, i) => { if (v === null) runs.push([]); else runs.at(-1).push([at[i], v]); });
  for (const run of runs.filter((r) => r.length)) {
    for (const [side, keep] of [["for", (v) => Math.max(v, 0)], ["against", (v) => Math.min(v, 0)]]) {
      const points = withCrossings(run).map(([x, v]) => [x, keep(v)]);
      if (points.some(([, v]) => v)) data.push({ x: points.map((q) => q[0]), y: points.map((q) => q[1]), mode: "lines", line: { width: 0 }, fill: "tozeroy", fillcolor: half(colour(side)), hoverinfo: "skip" });
    }
    data.push({ x: run.map((q) => q[0]), y: run.map((q) => q[1]), mode: run.length <= 64 ? "lines+markers" : "lines", line: { color: colour("ink"), width: 1.6 },
      marker: { color: colour("ink"), size: 6, line: { color: colour("ground"), width: 1.2 } }, hovertemplate: `frame %{x}: %{y:.3~g}${track.unit ? ` ${escapeHtml(track.unit)}` : ""}<extra></extra>` });
  }
  const lines = ticks(track.min, track.max);
  const layout = { margin: { l: 0, r: 0, t: 0, b: 0 }, showlegend: false, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: false, hovermode: "closest", hoverdistance: 12,
    hoverlabel: { bgcolor: colour("bg"), bordercolor: colour("line"), font: { color: colour("ink"), size: 12, family: FONT } },
    xaxis: { range: [-0.5, n - 0.5], visible: false, fixedrange: true },
    yaxis: { range: [track.min, track.max], fixedrange: true, showticklabels: false, ticks: "", tickvals: lines, gridcolor: colour("grid"), zeroline: true, zerolinecolor: colour("zero"), zerolinewidth: 1.2 } };
  return { data, layout, lines };
}

function withCrossings(points) { // with the places where a line crosses zero, so that both sides can be filled up to them
  return points.flatMap(([x, v], i) => {
    const [px, pv] = points[i - 1] || [x, v];
    return pv * v < 0 ? [[px + (x - px) * pv / (pv - v), 0], [x, v]] : [[x, v]];
  });
}

const escapeHtml = (text) => String(text).replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]); // plotly reads a little markup in its labels

function largestAt(track, at) { // the frame of the largest value, for those who listen
  return at[track.values.reduce((k, v, i) => (v !== null && (track.values[k] === null || v > track.values[k]) ? i : k), 0)];
}

function plotMatrix(values, x, y, colours, options, colour) { // values: rows of numbers
  const scale = colours.map((hex, i) => [i / (colours.length - 1), `#${hex}`]);
  const axis = (title, labels) => ({ title: { text: title, font: { size: 12 }, standoff: 6 }, tickvals: range(labels.length), ticktext: labels, fixedrange: true, showgrid: false, zeroline: false, ticks: "", tickangle: 0, automargin: false, color: colour("soft") });
  return {
    data: [{ type: "heatmap", z: values, zmin: options.min, zmax: options.max, colorscale: scale, xgap: 1, ygap: 1, showscale: !!options.bar, hoverongaps: false, customdata: options.notes,
      text: options.text, texttemplate: options.text ? "%{text}" : undefined, textfont: { size: 11 }, hovertemplate: `${options.hover}<extra></extra>`,
      colorbar: { thickness: 10, outlinewidth: 0, tickfont: { color: colour("soft"), size: 11 }, nticks: 4, x: 1.02, xpad: 0, ypad: 0, tickformat: ".2~g" } }],
    layout: { margin: options.margin, font: { family: FONT, size: 11, color: colour("ink") }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: false, hovermode: "closest",
      hoverlabel: { bgcolor: colour("bg"), bordercolor: colour("line"), font: { color: colour("ink"), size: 12, family: FONT }, align: "left" },
      xaxis: axis(options.columns, x), yaxis: { ...axis(options.rows, y), autorange: "reversed" } },
  };
}

const half = (rgb) => rgb.replace(/rgba?\(([^,]+,[^,]+,[^,)]+).*/, "rgba($1, 0.5)");
const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif';
const QUIET = { displayModeBar: false, responsive: false, doubleClick: false, showTips: false };

// ------------------------------------------------------------------ plotly's own script: once for a page, and only where a plot needs it
function plotly(ask) {
  if (globalThis.Plotly?.react) return Promise.resolve(globalThis.Plotly);
  const box = (globalThis.stastaPlotly ??= {});
  if (box.promise && performance.now() - box.since < 15000) return box.promise; // asked for by another player of this page
  box.since = performance.now();
  box.promise = new Promise((done) => { box.done = done; });
  if (ask) ask({ kind: "plotly" });
  return box.promise;
}

async function receivePlotly(buffer) { // gzipped, from the kernel
  const text = await new Response(new Blob([buffer]).stream().pipeThrough(new DecompressionStream("gzip"))).blob();
  const script = document.createElement("script"), url = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
  script.onload = () => { URL.revokeObjectURL(url); globalThis.stastaPlotly.done(globalThis.Plotly); };
  script.src = url;
  document.head.append(script);
}

function drawSegments(track, n, width, uid) {
  const row = 24, lanes = [], sorted = [...track.segments].sort((a, b) => a.start - b.start), ruler = new OffscreenCanvas(1, 1).getContext("2d");
  ruler.font = "12px system-ui, sans-serif";
  for (const s of sorted) { // first lane with room, counting the label where it does not fit into its bar
    s.x = (s.start / n) * width; s.w = Math.max(3, ((s.end - s.start) / n) * width); s.text = ruler.measureText(s.name).width + 14;
    s.inside = s.text <= s.w; s.flip = !s.inside && s.x + s.w + s.text > width && s.x >= s.text;
    const from = s.flip ? s.x - s.text : s.x, to = s.inside ? s.x + s.w : s.flip ? s.x + s.w : s.x + s.w + s.text;
    s.lane = lanes.findIndex((end) => end <= from + 0.5); if (s.lane < 0) s.lane = lanes.length;
    lanes[s.lane] = s.inside ? to : to + 4;
  }
  const height = lanes.length * row + 4, svg = draw("svg", { width, height, role: "img", class: "sta-plot" });
  svg.append(pattern(`${uid}h`), draw("rect", { x: 0, y: 0, width, height, class: "sta-ground" }));
  for (const s of sorted) {
    const y = s.lane * row + 4, bar = draw("rect", { x: s.x, y, width: s.w, height: row - 4, rx: 3, class: s.decisive ? "sta-bar-decisive" : "sta-bar-plain" });
    if (s.decisive) bar.setAttribute("fill", `url(#${uid}h)`);
    bar.append(draw("title", {}, `${s.name}: frames ${s.start} to ${s.end - 1}${s.decisive ? ", decisive" : ""}`));
    const label = draw("text", { x: s.inside ? s.x + 7 : s.flip ? s.x - 7 : s.x + s.w + 7, y: y + row / 2 - 1.5, "text-anchor": s.flip ? "end" : "start",
      "dominant-baseline": "central", class: s.inside ? "sta-bar-text" : "sta-bar-text sta-outside" }, s.name);
    svg.append(bar);
    if (s.inside && s.decisive) svg.append(draw("rect", { x: s.x + 4, y: y + 2, width: s.text - 8, height: row - 8, rx: 2, class: "sta-plate" }));
    svg.append(label);
  }
  svg.setAttribute("aria-label", `${track.title}: ${sorted.map((s) => `${s.name}, frames ${s.start} to ${s.end - 1}${s.decisive ? ", decisive" : ""}`).join("; ")}`);
  return { svg, height };
}

// ------------------------------------------------------------------ the player
let players = 0;

export function mount(host, spec, ask = null) {
  const uid = `sta${Date.now().toString(36)}${players++}`, n = spec.n;
  const state = { frame: 0, playing: false, loop: spec.loop !== false, speed: 1, alive: true };
  const root = make("div", { class: "sta", role: "group", "aria-label": spec.title || "Video player", "data-frame": 0, "data-playing": "false" });
  host.replaceChildren(root);
  const probe = make("i", { hidden: true });
  const colour = (name) => { probe.style.color = `var(--sta-${name})`; return getComputedStyle(probe).color; }; // plotly wants numbers, not variables
  const plots = []; // functions that draw a plot again: after a change of width or theme

  // -- panels
  const stage = make("div", { class: "sta-panels" });
  const confusion = spec.confusion ? confusionPanel(spec.confusion) : null;
  let panels = spec.panels.filter((p) => !confusion || p.group === spec.confusion.selected).map(buildPanel);
  const aside = [...(confusion ? [confusion.element] : []), ...panels.filter((p) => p.matrix).map((p) => p.matrix.element)];
  fillStage();
  const alone = panels.length === 1 && !aside.length && panels[0].side.childElementCount > 0;
  stage.classList.toggle("sta-single", alone);
  stage.classList.toggle("sta-compact", panels.length > 3);
  const natural = panels.reduce((sum, p) => sum + p.width + 20, 20) + aside.length * 420;
  root.style.maxWidth = confusion ? "1180px" : `${Math.max(Math.min(natural, 1500) + (alone ? 250 : 0), spec.tracks.length ? 780 : 500)}px`;

  function fillStage() {
    const shown = panels.map((p) => p.element);
    if (confusion) stage.replaceChildren(confusion.element, make("div", { class: "sta-cell-clips" }, confusion.heading, make("div", { class: "sta-panels" }, ...shown), confusion.names));
    else stage.replaceChildren(...panels.flatMap((p) => (p.matrix ? [p.element, p.matrix.element] : [p.element])));
  }

  function buildPanel(panel) {
    const shape = panel.h / panel.w, small = spec.panels.length > 3 ? 300 : 420, width = spec.confusion ? 260 : Math.round(shape > 1 ? Math.max(240, small / shape) : small);
    const canvas = make("canvas", { role: "img", "aria-label": [panel.title || spec.title || "clip", ...panel.layers.map((l) => l.title)].join(", ") });
    const when = make("span", { class: "sta-when" }), work = make("span", { class: "sta-work", role: "status", "aria-live": "polite" });
    const layers = panel.layers.map((layer) => ({ spec: layer, shown: true, opacity: layer.opacity, index: nearest(layer.at, n), render: null }));
    const side = make("div", { class: "sta-side" });
    const built = { panel, number: spec.panels.indexOf(panel), canvas, when, work, layers, side, width, frames: [], matrix: null };
    if (panel.choice) side.append(chooser(built, panel.choice));
    layers.forEach((layer) => side.append(layerControls(built, layer)));
    const header = make("div", { class: "sta-head" }, make("span", { class: "sta-name" }, panel.title || ""), work, when);
    const view = make("div", { class: "sta-view" }, canvas);
    view.style.aspectRatio = `${panel.w} / ${panel.h}`;
    const plain = !panel.title && !panel.choice && layers.every((l) => !l.spec.at);
    built.element = make("div", { class: "sta-panel" }, make("div", { class: "sta-main" }, ...(plain ? [] : [header]), view), side);
    built.element.style.setProperty("--sta-width", `${width}px`);
    const sparse = layers.find((l) => l.spec.at); // room for the longest label, so that titles do not break anew while the clip plays
    if (sparse) when.style.minWidth = `${`map of frame ${Math.max(...sparse.spec.at)}`.length}ch`;
    if (panel.matrix) built.matrix = matrixPanel(built, panel.matrix, view);
    canvas.addEventListener("pointerdown", () => stage.focus({ preventScroll: true }));
    return built;
  }

  // -- a T x T matrix at each place: click or drag on the picture to choose the place, click a row to go to its frame
  function matrixPanel(built, matrix, view) {
    const mark = make("div", { class: "sta-region", hidden: true }), row = make("i", { class: "sta-row-mark" }), plot = make("div", { class: "sta-heatmap", role: "img" });
    const where = make("span", { class: "sta-when", role: "status", "aria-live": "polite" });
    const mean = make("button", { type: "button", class: "sta-text", onclick: () => choosePlaces(null) }, "mean of all places");
    const host = make("div", { class: "sta-matrix" }, plot, row);
    const element = make("div", { class: "sta-panel" }, make("div", { class: "sta-main" }, make("div", { class: "sta-head" }, make("span", { class: "sta-name" }, matrix.title), where), host),
      make("div", { class: "sta-side" }, make("div", { class: "sta-row" }, mean, make("span", { class: "sta-legend" }, "click or drag on the clip, or shift and the arrow keys"))));
    element.style.setProperty("--sta-width", `${built.width}px`);
    const { w, h, at } = matrix, n_at = at.length, index = nearest(at, n), margin = { l: 52, r: 56, t: 6, b: 46 };
    let data = null, chosen = null; // chosen: cells [x0, y0, x1, y1], both ends included
    view.append(mark);
    view.classList.add("sta-pick");
    function values() {
      const [x0, y0, x1, y1] = chosen || [0, 0, w - 1, h - 1], sum = new Float64Array(n_at * n_at);
      for (let y = y0; y <= y1; y++) for (let x = x0; x <= x1; x++) for (let k = 0; k < sum.length; k++) sum[k] += data[y * w + x][4 * k];
      const places = (x1 - x0 + 1) * (y1 - y0 + 1), value = (k) => matrix.min + (sum[k] / places - 1) / 254 * (matrix.max - matrix.min);
      return range(n_at).map((i) => range(n_at).map((j) => value(i * n_at + j)));
    }
    async function paint() {
      const side = Math.min(host.clientWidth, built.canvas.clientHeight || 420);
      if (!data || !side) return;
      const z = values(), P = await plotly(ask);
      const { data: traces, layout } = plotMatrix(z, at.map(String), at.map(String), spec.colours.viridis,
        { min: matrix.min, max: matrix.max, bar: true, margin, rows: "frame that asks", columns: "frame that is asked", hover: "frame %{y} asks frame %{x}: %{z:.3f}" }, colour);
      Object.assign(layout, { width: host.clientWidth, height: side });
      await P.react(plot, traces, layout, QUIET);
      root.dataset.plots = +(root.dataset.plots || 0) + 1;
      const top = z.reduce((best, r, i) => { const j = r.indexOf(Math.max(...r)); return r[j] > best[2] ? [at[i], at[j], r[j]] : best; }, [0, 0, -Infinity]);
      plot.setAttribute("aria-label", `${matrix.title}, ${chosen ? "chosen places" : "mean of all places"}: most asked is frame ${top[1]} by frame ${top[0]}, ${number(top[2])}`);
      root.dataset.matrix = z.flat().map((v) => v.toFixed(3)).join(" ");
      place(side);
    }
    function place(side = plot.clientHeight) { // the row of the frame on the screen; geometry follows from the margins
      const cell = (side - margin.t - margin.b) / n_at;
      Object.assign(row.style, { left: `${margin.l}px`, right: `${margin.r}px`, top: `${margin.t + index[state.frame] * cell}px`, height: `${cell}px` });
    }
    function choosePlaces(cells) {
      chosen = cells; mark.hidden = !cells; mean.disabled = !cells;
      where.textContent = !cells ? "mean of all places" : cells[0] === cells[2] && cells[1] === cells[3] ? `place ${cells[0]}, ${cells[1]}` : `places ${cells[0]}\u2013${cells[2]}, ${cells[1]}\u2013${cells[3]}`;
      root.dataset.places = cells ? cells.join(" ") : "all";
      if (cells) Object.assign(mark.style, { left: `${100 * cells[0] / w}%`, top: `${100 * cells[1] / h}%`, width: `${100 * (cells[2] - cells[0] + 1) / w}%`, height: `${100 * (cells[3] - cells[1] + 1) / h}%` });
      paint();
    }
    const cellAt = (event) => { const box = view.getBoundingClientRect(); return [clamp(Math.floor((event.clientX - box.left) / box.width * w), 0, w - 1), clamp(Math.floor((event.clientY - box.top) / box.height * h), 0, h - 1)]; };
    let from = null;
    view.addEventListener("pointerdown", (event) => { from = cellAt(event); view.setPointerCapture(event.pointerId); choosePlaces([...from, ...from]); event.preventDefault(); });
    view.addEventListener("pointermove", (event) => { if (from) { const to = cellAt(event); choosePlaces([Math.min(from[0], to[0]), Math.min(from[1], to[1]), Math.max(from[0], to[0]), Math.max(from[1], to[1])]); } });
    view.addEventListener("pointerup", () => { from = null; });
    view.addEventListener("pointercancel", () => { from = null; });
    plot.addEventListener("click", (event) => { const box = plot.getBoundingClientRect(), k = Math.floor((event.clientY - box.top - margin.t) / (box.height - margin.t - margin.b) * n_at); if (k >= 0 && k < n_at) { pause(); show(at[k]); } });
    plots.push(paint);
    return { element, place, step(dx, dy) { const [x, y] = chosen || [Math.floor(w / 2), Math.floor(h / 2)], to = [clamp(x + dx, 0, w - 1), clamp(y + dy, 0, h - 1)]; choosePlaces([...to, ...to]); },
      async load() { data = await unpack({ ...matrix, w: n_at, h: n_at }); choosePlaces(null); } };
  }

  // -- a confusion matrix: click a cell, see its clips
  function confusionPanel(matrix) {
    const plot = make("div", { class: "sta-heatmap", role: "img", "aria-label": matrix.label }), heading = make("div", { class: "sta-head" });
    const select = make("select", { "aria-label": "Cell of the matrix", onchange: () => choose(select.value) }, ...matrix.cells.map((cell) => make("option", { value: cell.key }, `${cell.truth} \u2192 ${cell.answer} (${cell.total})`)));
    const mark = make("i", { class: "sta-cell-mark" }), host = make("div", { class: "sta-matrix" }, plot, mark), side = matrix.classes.length, margin = { l: 34, r: 8, t: 4, b: 40 };
    const element = make("div", { class: "sta-confusion" }, make("div", { class: "sta-head" }, make("span", { class: "sta-name" }, "confusion"), make("span", { class: "sta-when" }, "click a cell")), host,
      make("label", { class: "sta-choice" }, make("span", {}, "cell"), select));
    const key = side > 24 ? "" : make("ul", { class: "sta-classes", "aria-label": "Numbers of the classes" }, ...matrix.classes.map((name, i) => make("li", {}, make("b", {}, String(i)), make("span", {}, name))));
    let size = 0;
    async function paint() {
      const width = host.clientWidth;
      if (!width) return;
      const P = await plotly(ask), names = matrix.classes.map((name, i) => `${i}  ${escapeHtml(name)}`);
      const shares = matrix.counts.map((r) => { const sum = r.reduce((a, b) => a + b, 0) || 1; return r.map((v) => (v ? v / sum : null)); });
      const notes = matrix.counts.map((r, i) => r.map((v, j) => `truth: ${names[i]}<br>answer: ${names[j]}<br>${v} clip${v === 1 ? "" : "s"}`));
      const { data, layout } = plotMatrix(shares, range(side).map(String), range(side).map(String), spec.colours.blues,
        { min: 0, max: 1, margin, rows: "truth", columns: "answer", hover: "%{customdata}", notes, text: matrix.counts.map((r) => r.map((v) => (v ? String(v) : ""))) }, colour);
      size = width; layout.plot_bgcolor = colour("ground");
      Object.assign(layout, { width, height: width - margin.l - margin.r + margin.t + margin.b });
      await P.react(plot, data, layout, QUIET);
      root.dataset.plots = +(root.dataset.plots || 0) + 1;
      place();
    }
    function place() {
      const cell = (size - margin.l - margin.r) / side, [i, j] = (root.dataset.cell || matrix.selected).split(",").map(Number);
      Object.assign(mark.style, { left: `${margin.l + j * cell}px`, top: `${margin.t + i * cell}px`, width: `${cell}px`, height: `${cell}px` });
    }
    function head(cell) {
      heading.replaceChildren(make("span", { class: "sta-name" }, cell.truth === cell.answer ? cell.truth : `${cell.truth} \u2192 ${cell.answer}`),
        make("span", { class: "sta-when" }, `${cell.total} clip${cell.total === 1 ? "" : "s"}${cell.shown < cell.total ? `, ${cell.shown} shown` : ""}`));
    }
    async function choose(key) {
      const cell = matrix.cells.find((c) => c.key === key);
      if (!cell) return;
      root.dataset.cell = key; select.value = key; head(cell); place();
      panels = spec.panels.filter((p) => p.group === key).map(buildPanel);
      fillStage();
      await loadPanels(); layout();
    }
    plot.addEventListener("click", (event) => {
      const box = plot.getBoundingClientRect(), cell = (size - margin.l - margin.r) / side;
      choose(`${Math.floor((event.clientY - box.top - margin.t) / cell)},${Math.floor((event.clientX - box.left - margin.l) / cell)}`);
    });
    root.dataset.cell = matrix.selected; select.value = matrix.selected; head(matrix.cells.find((c) => c.key === matrix.selected));
    plots.push(paint);
    return { element, heading, names: key };
  }

  function layerControls(built, layer) {
    const box = make("input", { type: "checkbox", checked: true, onchange: () => { layer.shown = box.checked; paintPanel(built); } });
    const slider = make("input", { type: "range", min: 0, max: 100, step: 5, class: "sta-opacity", "aria-label": `Opacity of ${layer.spec.title}`,
      oninput: () => { layer.opacity = slider.value / 100; fill(slider); paintPanel(built); } });
    slider.value = Math.round(layer.opacity * 100); fill(slider);
    layer.legend = make("div", { class: "sta-legend" });
    const style = layer.spec.kind !== "vectors" ? null : make("button", { type: "button", class: "sta-text", onclick: () => {
      layer.spec.style = layer.spec.style === "wheel" ? "arrows" : "wheel"; label(); refreshLegend(layer); paintPanel(built); } });
    const label = () => style && (style.textContent = layer.spec.style === "wheel" ? "show arrows" : "show colours");
    label();
    layer.name = make("span", {}, layer.spec.title);
    const row = make("div", { class: "sta-row" }, make("label", { class: "sta-check" }, box, layer.name), style, slider);
    return make("div", { class: "sta-layer" }, row, layer.legend);
  }

  function refreshLegend(layer) { layer.legend.replaceChildren(legend(layer.spec, spec.colours)); }

  function chooser(built, choice) { // what to show: maps that are here at once, others are asked of the kernel
    built.selects = choice.controls.map((control, k) => {
      const select = make("select", { "aria-label": control.label, onchange: () => choose(built, choice) });
      for (const option of control.options) select.append(make("option", { value: option.value }, option.label));
      select.value = choice.key.split("|")[k];
      return select;
    });
    offer(built, choice);
    return make("div", { class: "sta-choices" }, ...choice.controls.map((control, k) => make("label", { class: "sta-choice" }, make("span", {}, control.label), built.selects[k])));
  }

  function offer(built, choice) { // without a kernel only what is here can be chosen; an option leads to the nearest choice that is
    if (ask) return;
    const here = Object.keys(choice.maps).map((key) => key.split("|"));
    built.selects.forEach((select, k) => { for (const option of [...select.options]) if (!here.some((parts) => parts[k] === option.value)) option.remove(); });
  }

  async function choose(built, choice, key = built.selects.map((s) => s.value).join("|")) {
    if (!(key in choice.maps) && !ask) { // keep what was just changed, give way in the rest
      const before = choice.key.split("|"), wanted = key.split("|"), changed = wanted.findIndex((v, k) => v !== before[k]);
      const fits = (parts) => parts.filter((v, k) => v === wanted[k]).length;
      key = Object.keys(choice.maps).filter((other) => other.split("|")[changed] === wanted[changed]).sort((a, b) => fits(b.split("|")) - fits(a.split("|")))[0];
      key.split("|").forEach((v, k) => { built.selects[k].value = v; });
    }
    const layer = built.layers[choice.layer];
    choice.key = key;
    if (key in choice.maps) {
      Object.assign(layer.spec, choice.maps[key]); layer.name.textContent = layer.spec.title;
      built.work.textContent = ""; root.removeAttribute("aria-busy");
      await prepare(built, layer); root.dataset.chosen = key;
      return;
    }
    built.work.replaceChildren(make("i", { class: "sta-spin" }), "computing\u2026");
    root.setAttribute("aria-busy", "true"); built.asked = performance.now();
    ask({ kind: "choose", panel: built.number, key });
  }

  async function receive(message, buffers) { // the kernel's answer
    if (message.kind === "plotly") return receivePlotly(buffers[0]);
    const built = panels.find((p) => p.number === message.panel);
    if (!built || !built.panel.choice) return;
    if (message.kind === "failed") { root.removeAttribute("aria-busy"); built.work.textContent = message.text; return; }
    built.panel.choice.maps[message.key] = message.layer;
    root.dataset.answered = Math.round(performance.now() - built.asked);
    if (built.panel.choice.key === message.key) await choose(built, built.panel.choice, message.key);
  }

  async function prepare(built, layer) { // decode a layer's maps, then show it
    const maps = await unpack(layer.spec);
    layer.render = LAYERS[layer.spec.kind](layer.spec, maps, spec.colours);
    refreshLegend(layer); paintPanel(built);
  }

  function paintPanel(built) {
    const { canvas } = built, context = canvas.getContext("2d"), { width, height } = canvas;
    if (!width) return;
    const picture = built.frames[state.frame], scale = width / (canvas.clientWidth || width);
    context.globalAlpha = 1; context.imageSmoothingEnabled = true; context.imageSmoothingQuality = "high";
    if (picture) context.drawImage(crisp(picture, width), 0, 0, width, height);
    for (const layer of built.layers) {
      if (!layer.shown || !layer.render || !layer.opacity) continue;
      context.globalAlpha = layer.opacity;
      layer.render(context, width, height, layer.index[state.frame], scale);
    }
    context.globalAlpha = 1;
    const sparse = built.layers.find((l) => l.spec.at && l.spec.at.at(-1) - l.spec.at[0] >= l.spec.n); // its own clock leaves frames out
    const sampled = sparse && sparse.spec.at[sparse.index[state.frame]];
    built.when.textContent = sparse ? `map of frame ${sampled}` : "";
    built.when.classList.toggle("sta-here", sampled === state.frame);
  }

  // -- time line
  const button = (name, label, action) => make("button", { type: "button", class: "sta-button", "aria-label": label, title: label, onclick: action }, icon(name));
  const play = button("play", "Play (space)", () => toggle());
  play.classList.add("sta-play");
  const slider = make("input", { type: "range", min: 0, max: n - 1, step: 1, value: 0, class: "sta-slider", "aria-label": "Frame", disabled: n < 2,
    oninput: () => { pause(); show(+slider.value); } });
  const frameText = make("b", {}), timeText = make("span", { class: "sta-soft" });
  const marks = draw("svg", { class: "sta-marks", height: 26, "aria-hidden": "true" });
  const seen = [...new Set(spec.seen || [])].sort((a, b) => a - b);
  const readout = make("div", { class: "sta-right sta-time" }, make("span", {}, frameText, make("span", { class: "sta-soft" }, ` / ${n - 1}`)), timeText);
  const rows = make("div", { class: "sta-line-grid" },
    make("div", { class: "sta-left" }, play), make("div", { class: "sta-slot" }, slider), readout,
    make("div", { class: "sta-left" }), make("div", { class: "sta-mid" }, marks),
    make("div", { class: "sta-right sta-soft sta-small" }, ...(seen.length ? [make("i", { class: "sta-seen" }), `${seen.length} seen`] : [])));
  if (seen.length) rows.lastChild.title = "The frames that the model was given";

  const tracks = spec.tracks.map((track, k) => {
    const left = make("div", { class: "sta-left sta-axis" }), middle = make("div", { class: "sta-mid sta-track", "data-track": k, role: "img" }), right = make("div", { class: "sta-right sta-value" });
    const key = make("span", { class: "sta-key" });
    const any = track.segments.some((s) => s.decisive);
    if (track.values && track.signed) key.append(make("i", { class: "sta-box sta-for" }), "for ", make("i", { class: "sta-box sta-against" }), "against ");
    if (any) key.append(make("i", { class: "sta-box sta-hatched" }), "decisive");
    rows.append(make("div", { class: "sta-left" }), make("div", { class: "sta-mid sta-caption" }, make("span", { class: "sta-name" }, track.title), key), make("div", { class: "sta-right" }), left, middle, right);
    const built = { track, left, middle, right, head: make("i", { class: "sta-playhead" }), plot: make("div", { class: "sta-curve" }), ...(track.values ? curveOf(track, n) : {}) };
    if (track.values) {
      middle.setAttribute("aria-label", `${track.title}: from ${number(track.min)} to ${number(track.max)}, largest at frame ${largestAt(track, built.at)}`);
      plots.push(() => paintCurve(built));
    }
    return built;
  });

  async function paintCurve(t) {
    const width = t.middle.clientWidth;
    if (!width) return;
    if (!t.plot.isConnected) {
      const shades = t.track.segments.filter((s) => s.decisive).map((s) => Object.assign(make("i", { class: "sta-shade", title: `${s.name}: frames ${s.start} to ${s.end - 1}, decisive` }), { style: `left:${100 * s.start / n}%;width:${100 * (s.end - s.start) / n}%` }));
      t.middle.replaceChildren(...shades, t.plot, t.head);
      t.middle.classList.add("sta-plot");
      t.left.style.height = t.right.style.height = t.middle.style.height = `${CURVE}px`;
    }
    const { data, layout, lines } = plotCurve(t.track, n, colour), P = await plotly(ask), { min, max } = t.track;
    t.left.replaceChildren(...lines.map((v) => Object.assign(make("span", {}, number(v)), { style: `top:${CURVE * (max - v) / (max - min)}px` })));
    await P.react(t.plot, data, { ...layout, width, height: CURVE }, QUIET);
    root.dataset.plots = +(root.dataset.plots || 0) + 1;
  }

  const loop = button("loop", "Loop", () => { state.loop = !state.loop; loop.setAttribute("aria-pressed", state.loop); });
  loop.setAttribute("aria-pressed", state.loop);
  const speed = make("select", { "aria-label": "Speed", onchange: () => setSpeed(+speed.value) }, ...SPEEDS.map((s) => make("option", { value: s, selected: s === 1 }, `${s}\u00d7`)));
  const controls = make("div", { class: "sta-controls" },
    button("back", "One frame back (left arrow)", () => step(-1)), button("forward", "One frame on (right arrow)", () => step(1)), loop,
    make("label", { class: "sta-speed" }, make("span", {}, "speed"), speed),
    make("span", { class: "sta-hint" }, make("kbd", {}, "\u2190"), make("kbd", {}, "\u2192"), " step ", make("kbd", {}, "space"), " play ", make("kbd", {}, "home"), make("kbd", {}, "end")));

  stage.tabIndex = 0; stage.dataset.lmSuppressShortcuts = "true"; stage.setAttribute("role", "group"); stage.setAttribute("aria-label", "Frames. Arrow keys step, space plays, home and end jump.");
  const heading = spec.title || spec.note ? make("div", { class: "sta-title" }, spec.title ? make("h3", {}, spec.title) : null, spec.note ? make("p", {}, spec.note) : null) : null;
  root.append(...[heading, stage, rows, controls, probe].filter(Boolean));

  // -- what happens
  function show(frame) {
    state.frame = clamp(Math.round(frame), 0, n - 1);
    root.dataset.frame = state.frame;
    slider.value = state.frame; fill(slider);
    slider.setAttribute("aria-valuetext", `frame ${state.frame} of ${n - 1}, ${(state.frame / spec.fps).toFixed(2)} seconds`);
    frameText.textContent = state.frame; timeText.textContent = `${(state.frame / spec.fps).toFixed(2)} s`;
    panels.forEach((p) => { paintPanel(p); p.matrix?.place(); });
    for (const t of tracks) {
      t.head.style.left = `${((state.frame + 0.5) / n) * 100}%`;
      if (t.track.values) { const v = t.track.values[t.index[state.frame]]; t.right.textContent = v === null ? "no value" : (t.track.signed ? signedText(v) : number(v)) + (t.track.unit ? ` ${t.track.unit}` : ""); }
      else t.right.textContent = t.track.segments.filter((s) => s.start <= state.frame && state.frame < s.end).map((s) => s.name).join("\n") || "\u2013";
    }
  }
  function step(by) { pause(); show(state.frame + by); }
  function setSpeed(value) { state.speed = value; anchor(); }
  let from = 0, since = 0;
  function anchor() { from = state.frame; since = performance.now(); }
  function setPlaying(on) {
    state.playing = on; root.dataset.playing = on;
    play.replaceChildren(icon(on ? "pause" : "play")); play.setAttribute("aria-label", on ? "Pause (space)" : "Play (space)"); play.title = play.getAttribute("aria-label");
  }
  function pause() { if (state.playing) setPlaying(false); }
  function toggle() {
    if (state.playing) return pause();
    if (n < 2) return;
    if (state.frame === n - 1) show(0);
    setPlaying(true); anchor(); requestAnimationFrame(tick);
  }
  function tick(now) { // time decides the frame: a slow machine drops frames, it does not play slower
    if (!state.playing || !state.alive) return;
    if (!root.isConnected) return setPlaying(false);
    let frame = from + Math.floor(Math.max(0, now - since) / 1000 * spec.fps * state.speed);
    if (frame >= n && !state.loop) { show(n - 1); return setPlaying(false); }
    frame %= n;
    if (frame !== state.frame) show(frame);
    requestAnimationFrame(tick);
  }
  function fill(input) { input.style.setProperty("--fill", `${100 * (input.value - input.min) / Math.max(1, input.max - input.min)}%`); }

  root.addEventListener("keydown", (event) => {
    const on = event.target, own = on.tagName === "SELECT" || (on.type === "range" && on !== slider);
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const jump = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: 10, PageUp: -10 }[event.key];
    if (own && event.key !== " ") { event.stopPropagation(); return; }
    const picking = panels.find((p) => p.matrix), way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (picking && event.shiftKey && way) { picking.matrix.step(...way); event.preventDefault(); event.stopPropagation(); return; }
    if (event.key === " ") { if (on.tagName === "BUTTON" || on.tagName === "SELECT" || on.type === "checkbox") return; toggle(); }
    else if (event.key === "Home") { pause(); show(0); }
    else if (event.key === "End") { pause(); show(n - 1); }
    else if (jump) step(jump);
    else return;
    event.preventDefault(); event.stopPropagation();
  });
  for (const t of tracks) { // click or drag on a track: jump there
    const go = (event) => { const box = t.middle.getBoundingClientRect(); pause(); show(Math.floor(((event.clientX - box.left) / box.width) * n)); };
    t.middle.addEventListener("pointerdown", (event) => { t.middle.setPointerCapture(event.pointerId); go(event); slider.focus({ preventScroll: true }); event.preventDefault(); });
    t.middle.addEventListener("pointermove", (event) => { if (t.middle.hasPointerCapture(event.pointerId)) go(event); });
  }

  // -- layout: canvases at the screen's own resolution, tracks at their true width
  function layout() {
    if (!root.isConnected || !root.clientWidth) return;
    const density = Math.min(3, globalThis.devicePixelRatio || 1), heads = [...stage.querySelectorAll(".sta-panel .sta-head")];
    heads.forEach((head) => { head.style.minHeight = ""; }); // a title of two lines must not push its picture below the others
    const tallest = Math.max(0, ...heads.map((head) => head.offsetHeight));
    heads.forEach((head) => { head.style.minHeight = `${tallest}px`; });
    for (const p of panels) {
      const w = Math.round(p.canvas.clientWidth * density), h = Math.round(p.canvas.clientHeight * density);
      if (w && (p.canvas.width !== w || p.canvas.height !== h)) { p.canvas.width = w; p.canvas.height = h; }
    }
    const width = marks.parentElement.clientWidth;
    if (width !== layout.width) { layout.width = width; drawMarks(width); tracks.filter((t) => !t.track.values).forEach((t, k) => drawBars(t, width, `${uid}t${k}`)); plots.forEach((paint) => paint()); }
    show(state.frame);
  }
  function drawBars(t, width, id) {
    const { svg, height } = drawSegments(t.track, n, width, id);
    t.middle.replaceChildren(svg, t.head); t.left.style.height = t.right.style.height = `${height}px`;
    t.middle.setAttribute("aria-label", svg.getAttribute("aria-label"));
  }
  function drawMarks(width) {
    const thumb = 16, x = (t) => ((t + 0.5) / n) * width;
    slider.style.marginLeft = `${x(0) - thumb / 2}px`; slider.style.width = `${x(n - 1) - x(0) + thumb}px`;
    marks.setAttribute("width", width); marks.replaceChildren();
    for (const t of seen) marks.append(draw("circle", { cx: x(t), cy: 4, r: 3, class: "sta-mark" }));
    const seconds = n / spec.fps, stepSeconds = [0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300].find((s) => (s / seconds) * width >= 56) || seconds;
    for (let s = 0; s * spec.fps <= n - 1 + 1e-6; s += stepSeconds) {
      marks.append(draw("line", { x1: x(s * spec.fps), x2: x(s * spec.fps), y1: 10, y2: 13, class: "sta-tick" }),
        draw("text", { x: x(s * spec.fps), y: 24, "text-anchor": "middle", class: "sta-tick-text" }, `${+s.toFixed(1)} s`));
    }
  }
  const observer = new ResizeObserver(() => layout()), dark = matchMedia("(prefers-color-scheme: dark)");
  const repaint = () => { // plotly's colours are numbers: after a change of theme they are drawn again, at once and when a theme's style sheet has come
    for (const wait of [0, 500]) setTimeout(() => { if (state.alive) plots.forEach((paint) => paint()); }, wait);
  };
  const themes = new MutationObserver(repaint);
  observer.observe(root);
  dark.addEventListener("change", repaint);
  for (const place of [document.documentElement, document.body]) themes.observe(place, { attributes: true, attributeFilter: ["theme", "data-jp-theme-light", "data-vscode-theme-kind"] });

  // -- frames arrive: decoded once, when they are first needed, shared by the panels that show the same clip
  const decoded = new Map();
  function clipOf(number) {
    if (!decoded.has(number)) decoded.set(number, Promise.all(spec.clips[number].images.map((image) => decode(image, spec.clips[number].mime))));
    return decoded.get(number);
  }
  async function loadPanels() {
    await Promise.all(panels.map(async (p) => { p.frames = p.panel.clip === null ? [] : await clipOf(p.panel.clip); }));
    await Promise.all(panels.flatMap((p) => p.layers.map((layer) => prepare(p, layer))));
  }
  async function load() {
    await loadPanels();
    await Promise.all(panels.map((p) => p.matrix?.load()));
    layout(); show(state.frame); root.dataset.ready = "true";
  }
  const ready = load().catch((error) => { root.prepend(make("p", { class: "sta-error", role: "alert" }, `The player cannot show this clip: ${error.message}`)); throw error; });

  return { ready, show, toggle, receive, root, destroy() {
    state.alive = false; state.playing = false; observer.disconnect(); themes.disconnect(); dark.removeEventListener("change", repaint);
    root.querySelectorAll(".js-plotly-plot").forEach((plot) => globalThis.Plotly?.purge(plot));
    host.replaceChildren();
  } };
}

// ------------------------------------------------------------------ coat one: a plain page
export function mountAll(where = document) {
  for (const host of where.querySelectorAll("[data-stasta-player]:not([data-mounted])")) {
    host.dataset.mounted = "true";
    mount(host, JSON.parse(document.getElementById(host.dataset.stastaPlayer).textContent));
  }
}

// ------------------------------------------------------------------ coat two: an anywidget
export default {
  render({ model, el }) {
    let view = null;
    const build = () => { view?.destroy(); view = mount(el, structuredClone(model.get("spec")), (message) => model.send(message)); };
    const answer = (message, buffers) => view.receive(message, buffers);
    build();
    model.on("change:spec", build); model.on("msg:custom", answer);
    return () => { model.off("change:spec", build); model.off("msg:custom", answer); view.destroy(); };
  },
};
