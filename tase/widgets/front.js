// The run explorer and the report: one module, no dependency. `render` is what anywidget calls in a notebook, `openPage`
// what the HTML file calls. One run or two, side by side, of those in one block of bytes (payload.py).

const QUANTITIES = { tau: "temperature τ", weight: "weight w", headness: "headness a", loss: "loss" };
const LAYOUTS = { tsne: "t-SNE", umap: "UMAP", pca: "PCA" };
const CLASSES = [ // as in figures/style.py
  "#6184ff", "#d67951", "#35721a", "#8943ba", "#aa9004", "#f9447a", "#0ba48a", "#9a4785", "#6a664d", "#848ec4",
];
const VIRIDIS = [[68, 1, 84], [65, 68, 135], [42, 120, 142], [34, 168, 132], [122, 209, 81], [253, 231, 37]];
const STEP = 700; // milliseconds from one snapshot to the next while playing
const BINS = 28; // of a histogram
const PAGE = 48; // images of a selection before "show more"
const NEAR = 6; // neighbours of an image at each snapshot, as payload.py packs them
const MANY = 20000; // points: above it a map has one pixel for a pixel of the page
const MARGIN = 64; // pixels round a map in which points are drawn that lie partly outside
const NOWHERE = -32768; // place of an image that is not laid out
const HIDDEN = 0, SHOWN = 1, CHOSEN = 2; // states of a point
const TYPES = { i1: Int8Array, u1: Uint8Array, i2: Int16Array, u2: Uint16Array, i4: Int32Array, f4: Float32Array };

// ------------------------------------------------------------------------------------------------------- small things

/** The payload's header with typed arrays in place of what stands for them; floats in 16 bits become Float32Array. */
function unpack(buffer, start = 0) {
  const length = new DataView(buffer, start).getUint32(0, true);
  const base = start + 8 + length;
  const header = new TextDecoder().decode(new Uint8Array(buffer, start + 8, length));
  return JSON.parse(header, (_, value) => {
    if (!value || !value["@"]) return value;
    const [offset, kind, count] = value["@"];
    const Type = TYPES[kind];
    const codes = new Type(buffer.slice(base + offset, base + offset + count * Type.BYTES_PER_ELEMENT));
    if (value.low === undefined) return codes;
    const step = (value.high - value.low) / 65534, numbers = new Float32Array(count);
    for (let i = 0; i < count; i++) numbers[i] = codes[i] === 65535 ? NaN : value.low + codes[i] * step;
    return numbers;
  });
}

/** Where an epoch lies among a run's snapshots: the last not later (i), the next (j), and how far between (f). */
function between(epochs, epoch) {
  let i = 0;
  while (i + 1 < epochs.length && epochs[i + 1] <= epoch + 1e-9) i++;
  const j = Math.min(i + 1, epochs.length - 1);
  const f = j === i ? 0 : (epoch - epochs[i]) / (epochs[j] - epochs[i]);
  return { i, j, f: Math.max(0, Math.min(1, f)) };
}

/** A quantile of the finite values, of about 8,000 evenly spaced ones where there are more. */
function quantile(values, share) {
  const jump = Math.max(1, Math.floor(values.length / 8000));
  const some = [];
  for (let i = 0; i < values.length; i += jump) if (Number.isFinite(values[i])) some.push(values[i]);
  some.sort((a, b) => a - b);
  return some.length ? some[Math.round(share * (some.length - 1))] : NaN;
}

const wholeEpoch = (epoch) => Math.floor(epoch + 1e-9); // between two snapshots the earlier one is shown
const number = (x) => Math.round(x).toLocaleString("en");
const fixed = (x, digits = 2) => (Number.isFinite(x) ? x.toFixed(digits) : "–");
const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
const css = (colour) => `rgb(${colour})`;
const pack = ([r, g, b]) => (0xff000000 | (b << 16) | (g << 8) | r) >>> 0; // as a pixel lies in memory

/** A colour for a share from 0 to 1: viridis without the end that cannot be seen on this ground. */
function viridis(share, dark) {
  const place = (Math.max(0, Math.min(1, share)) * 0.85 + (dark ? 0.15 : 0)) * (VIRIDIS.length - 1);
  const i = Math.min(VIRIDIS.length - 2, Math.floor(place));
  return VIRIDIS[i].map((c, k) => Math.round(c + (VIRIDIS[i + 1][k] - c) * (place - i)));
}

/** An element with attributes, listeners (onclick ...) and children; text is set as text, never as HTML. */
function h(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "text", "circle"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Replace what a box shows; where the focus was in it, it stays at the control in the same place. */
function swap(box, ...children) {
  const controls = () => [...box.querySelectorAll("button, input")], at = controls().indexOf(box.getRootNode().activeElement);
  box.replaceChildren(...children);
  if (at >= 0) controls()[Math.min(at, controls().length - 1)]?.focus({ preventScroll: true });
}

/** Bytes in base64. */
function base64(bytes) {
  let text = "";
  for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
  return btoa(text);
}

const button = (text, onclick, attributes = {}) => h("button", { type: "button", onclick, ...attributes }, text);

// ------------------------------------------------------------------------------------------------------------ one map

/** A disc of `size` pixels as lists of pixels and how much they cover (0 to 256), at 4 x 4 places within a pixel. */
function disc(size, share, stride) {
  const half = Math.ceil(size / 2) + 1, places = [];
  for (let k = 0; k < 16; k++) {
    const offset = [], cover = [];
    for (let y = -half; y <= half; y++) {
      for (let x = -half; x <= half; x++) {
        const away = Math.hypot(x + 0.375 - (k & 3) / 4, y + 0.375 - (k >> 2) / 4);
        const part = Math.round(256 * share * Math.max(0, Math.min(1, size / 2 + 0.5 - away)));
        if (part) offset.push(y * stride + x) && cover.push(part);
      }
    }
    places.push({ offset: Int32Array.from(offset), cover: Int32Array.from(cover) });
  }
  return places;
}

/** Lay a colour over the pixels around `at`: red and blue in one multiplication, green in another. */
function blend(pixels, at, { offset, cover }, colour) {
  const redBlue = colour & 0xff00ff, green = colour & 0xff00;
  for (let k = 0; k < offset.length; k++) {
    const i = at + offset[k], over = cover[k], under = 256 - over, d = pixels[i];
    const rb = (Math.imul(d & 0xff00ff, under) + Math.imul(redBlue, over)) >>> 8;
    const g = (Math.imul(d & 0xff00, under) + Math.imul(green, over)) >>> 8;
    pixels[i] = 0xff000000 | (rb & 0xff00ff) | (g & 0xff00);
  }
}

/**
 * The points of one run, blended into pixels by the processor; over them what is marked. WebGL is no faster where it is
 * drawn in software, and a page may have sixteen of its contexts only, which is few in a notebook.
 */
class PointMap {
  constructor(app, run) {
    this.app = app;
    this.run = run;
    this.set = app.data.sets[run.set];
    this.m = this.set.index.length;
    this.state = new Uint8Array(this.m).fill(SHOWN);
    this.colour = new Uint32Array(this.m);
    this.counts = [0, 0, 0]; // points in each state
    this.lasso = null; // pixels drawn so far
    this.pixels = new Float32Array(2 * this.m);
    this.pixelsOf = ""; // the time and view for which they hold
    this.build();
    this.discs = new Map(); // those of the present size
    this.listen();
  }

  build() {
    const { run, app } = this;
    const label = `Map of ${run.title}: arrow keys step from image to image, Enter selects, Shift Enter adds, plus and minus zoom`;
    this.points = h("canvas", { "aria-hidden": true });
    this.over = h("canvas", { tabindex: 0, role: "application", "aria-label": label, class: "tase-over" });
    this.caption = h("small");
    const zooms = [["+", "zoom in", 1.4], ["−", "zoom out", 1 / 1.4], ["⤢", "show all", 0]].map(
      ([text, title, factor]) => button(text, () => app.zoom(factor), { title, "aria-label": `${title}, ${run.title}` })
    );
    this.box = h("div", { class: "tase-map" }, this.points, this.over, h("div", { class: "tase-zoom" }, zooms));
    const caption = h("figcaption", {}, h("b", {}, run.title), ` ${run.name} `, this.caption);
    this.node = h("figure", { class: "tase-run-map" }, caption, this.box);
  }

  get places() {
    return this.run.places[this.app.kind] || Object.values(this.run.places)[0];
  }

  /** Points of a readable size: smaller where there are many, larger when zoomed in. */
  get size() {
    const base = Math.max(2.5, Math.min(11, 240 / Math.sqrt(this.m)));
    return base * Math.min(2, Math.sqrt(this.app.view.zoom)) * Math.max(0.75, Math.min(1.3, this.width / 500));
  }

  resize() {
    ({ width: this.width, height: this.height } = this.box.getBoundingClientRect());
    this.ratio = window.devicePixelRatio || 1;
    this.grain = this.m > MANY ? 1 : this.ratio; // pixels of the canvas for one of the page
    for (const [canvas, ratio] of [[this.points, this.grain], [this.over, this.ratio]]) {
      canvas.width = Math.max(1, Math.round(this.width * ratio));
      canvas.height = Math.max(1, Math.round(this.height * ratio));
    }
    this.image = new ImageData(this.points.width + 2 * MARGIN, this.points.height + 2 * MARGIN);
    this.discs.clear();
    this.pixelsOf = "";
  }

  /** Pixels for one unit of places (16-bit steps / 32767), and the place in the middle. */
  scale() {
    const { fit, view } = this.app;
    const k = 0.95 * view.zoom * Math.min(this.width / fit.w, this.height / fit.h);
    return { k, x: fit.x + view.x, y: fit.y + view.y };
  }

  /** Pixels [2 m] of all points now; NaN for those without a place. */
  screen() {
    const { i, j, f } = between(this.run.epochs, this.app.epoch);
    const { k, x, y } = this.scale();
    const now = [i, f, k, x, y, this.width, this.app.kind].join();
    if (now === this.pixelsOf) return this.pixels;
    const { places: p, m, pixels } = this;
    for (let r = 0; r < m; r++) {
      const a = 2 * (i * m + r), b = 2 * (j * m + r), none = p[a] === NOWHERE;
      pixels[2 * r] = none ? NaN : this.width / 2 + ((p[a] + (p[b] - p[a]) * f) / 32767 - x) * k;
      pixels[2 * r + 1] = none ? NaN : this.height / 2 - ((p[a + 1] + (p[b + 1] - p[a + 1]) * f) / 32767 - y) * k;
    }
    this.pixelsOf = now;
    return pixels;
  }

  draw() {
    if (!this.places) return;
    const fade = this.app.selected(this.run.set).length ? 0.45 : Math.max(0.55, 0.92 - this.m / 1e5);
    this.drawPoints(fade);
    this.drawMarks();
  }

  drawPoints(fade) {
    const { image, grain, m, state, colour } = this, { width, height } = image, p = this.screen();
    const pixels = new Uint32Array(image.data.buffer), size = this.size * grain, { theme } = this.app;
    pixels.fill(pack(theme.ground));
    const pass = (want, look, shade) => {
      const reach = Math.ceil(look.size / 2) + 1, places = this.discOf(look.size, look.share);
      for (let r = 0; r < m; r++) {
        const u = p[2 * r] * grain + MARGIN, v = p[2 * r + 1] * grain + MARGIN;
        if (state[r] !== want || !(u > reach && v > reach && u < width - reach - 1 && v < height - reach - 1)) continue;
        const a = Math.floor(u * 4), b = Math.floor(v * 4); // NaN, an image without a place, is left out above
        blend(pixels, (b >> 2) * width + (a >> 2), places[((b & 3) << 2) | (a & 3)], shade ?? colour[r]);
      }
    };
    if (this.counts[HIDDEN]) pass(HIDDEN, { size, share: 0.16 }, pack(theme.soft));
    if (this.counts[SHOWN]) pass(SHOWN, { size, share: fade });
    if (this.counts[CHOSEN]) pass(CHOSEN, { size: 1.45 * size, share: 1 }, pack(theme.ink));
    if (this.counts[CHOSEN]) pass(CHOSEN, { size: size, share: 1 });
    this.points.getContext("2d").putImageData(image, -MARGIN, -MARGIN);
  }

  discOf(size, share) {
    const key = `${size} ${share}`;
    if (this.discs.size > 8) this.discs.clear(); // of sizes passed while zooming
    if (!this.discs.has(key)) this.discs.set(key, disc(size, share, this.image.width));
    return this.discs.get(key);
  }

  colourOf(r) {
    const c = this.colour[r];
    return css([c & 255, (c >> 8) & 255, (c >> 16) & 255]);
  }

  /** Trails of the selection, lines to the neighbours of the image looked at, rings, and the lasso. */
  drawMarks() {
    const { app, run } = this;
    const c = this.over.getContext("2d"), p = this.screen();
    const { i } = between(run.epochs, app.epoch);
    const chosen = app.selected(run.set), focus = app.focusOf(run.set);
    c.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    c.clearRect(0, 0, this.width, this.height);
    c.lineJoin = "round";
    const trails = chosen.length <= 24 ? chosen : []; // more would hide the map
    for (const r of new Set(focus >= 0 ? [...trails, focus] : trails)) this.drawTrail(c, p, r, i, r === focus);
    c.strokeStyle = c.fillStyle = css(app.theme.ink);
    c.globalAlpha = 0.6;
    c.lineWidth = 0.8;
    for (const r of focus >= 0 ? app.neighbours(run, focus, i) : []) {
      c.beginPath();
      c.moveTo(p[2 * focus], p[2 * focus + 1]);
      c.lineTo(p[2 * r], p[2 * r + 1]);
      c.stroke();
    }
    c.globalAlpha = 1;
    for (const [r, width] of [[app.hoverOf(run.set), 1.5], [focus, 2.5]]) {
      if (r < 0 || Number.isNaN(p[2 * r])) continue;
      c.lineWidth = width;
      c.beginPath();
      c.arc(p[2 * r], p[2 * r + 1], this.size / 2 + 4, 0, 7);
      c.stroke();
    }
    if (!this.lasso) return;
    c.lineWidth = 1.5;
    c.beginPath();
    for (const [u, v] of this.lasso) c.lineTo(u, v);
    c.closePath();
    c.stroke();
    c.globalAlpha = 0.08;
    c.fill();
  }

  /** The way of a point from the first snapshot to where it is now. */
  drawTrail(c, p, r, last, strong) {
    if (Number.isNaN(p[2 * r])) return;
    const { k, x, y } = this.scale();
    c.beginPath();
    for (let t = 0; t <= last; t++) {
      const a = 2 * (t * this.m + r);
      c.lineTo(this.width / 2 + (this.places[a] / 32767 - x) * k, this.height / 2 - (this.places[a + 1] / 32767 - y) * k);
    }
    c.lineTo(p[2 * r], p[2 * r + 1]);
    c.strokeStyle = this.colourOf(r);
    c.globalAlpha = strong ? 0.9 : 0.45;
    c.lineWidth = strong ? 2 : 1.2;
    c.stroke();
  }

  /** Row of the shown point nearest to a pixel, at most `reach` away; `good(dx, dy)` may rule some out. */
  nearest(u, v, reach, good = () => true) {
    const p = this.screen();
    let best = -1, least = reach * reach;
    for (let r = 0; r < this.m; r++) {
      const dx = p[2 * r] - u, dy = p[2 * r + 1] - v, d = dx * dx + dy * dy;
      if (!(d < least) || this.state[r] === HIDDEN || !good(dx, dy)) continue; // NaN: not on the map
      best = r;
      least = d;
    }
    return best;
  }

  /** Rows of the shown points inside a polygon: a line from them to the right crosses it an odd number of times. */
  inside(polygon) {
    const p = this.screen(), rows = [];
    for (let r = 0; r < this.m; r++) {
      const u = p[2 * r], v = p[2 * r + 1];
      let odd = false;
      for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
        const [ui, vi] = polygon[i], [uj, vj] = polygon[j];
        if (vi > v !== vj > v && u < ((uj - ui) * (v - vi)) / (vj - vi) + ui) odd = !odd;
      }
      if (odd && this.state[r] !== HIDDEN) rows.push(r);
    }
    return rows;
  }

  listen() {
    const { over, app } = this;
    this.grip = null; // where a drag with the right button, or with Alt, began: it moves the map
    over.addEventListener("pointerdown", (e) => {
      over.setPointerCapture(e.pointerId);
      if (e.button || e.altKey) this.grip = [e.clientX, e.clientY, app.view.x, app.view.y];
      else this.lasso = [this.at(e)];
    });
    over.addEventListener("pointermove", (e) => this.move(e));
    over.addEventListener("pointerup", (e) => this.release(e));
    over.addEventListener("pointerleave", () => app.hover(this, -1));
    over.addEventListener("contextmenu", (e) => e.preventDefault());
    const wheel = (e) => {
      if (document.activeElement !== over) return; // only a map that was clicked: a page can be scrolled past it
      e.preventDefault();
      app.zoom(Math.exp(-e.deltaY / 400), this, this.at(e));
    };
    over.addEventListener("wheel", wheel, { passive: false });
    over.addEventListener("keydown", (e) => this.key(e));
  }

  at(e) {
    const box = this.over.getBoundingClientRect();
    return [e.clientX - box.left, e.clientY - box.top];
  }

  move(e) {
    const { app, grip } = this;
    if (grip) {
      const { k } = this.scale();
      app.view.x = grip[2] - (e.clientX - grip[0]) / k;
      app.view.y = grip[3] + (e.clientY - grip[1]) / k;
    } else if (this.lasso) this.lasso.push(this.at(e));
    else return app.hover(this, this.nearest(...this.at(e), 12), e);
    app.dirty();
  }

  release(e) {
    const drawn = this.lasso, adds = e.shiftKey || e.ctrlKey || e.metaKey, { set } = this.run;
    this.lasso = this.grip = null;
    if (!drawn) return;
    const [u, v] = this.at(e);
    if (Math.max(...drawn.map(([a, b]) => Math.hypot(a - u, b - v))) > 6) {
      this.app.select(set, this.inside(drawn), adds ? "add" : "replace");
      return;
    }
    const row = this.nearest(u, v, 14);
    if (row >= 0) this.app.select(set, [row], adds ? "toggle" : "replace", row);
    else if (!adds) this.app.select(set, []);
  }

  key(e) {
    if (e.ctrlKey || e.metaKey || e.altKey) return; // the browser's own
    const { app } = this, { set } = this.run, focus = app.focusOf(set);
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[e.key];
    const factor = { "+": 1.4, "=": 1.4, "-": 1 / 1.4, 0: 0 }[e.key];
    if (way) this.stepTo(focus, way);
    else if (e.key === "Enter" && focus >= 0) app.select(set, [focus], e.shiftKey ? "toggle" : "replace", focus);
    else if (factor !== undefined) app.zoom(factor);
    else return;
    e.preventDefault();
    e.stopPropagation();
  }

  /** Look at the nearest point that lies within 45 degrees of a way; from nowhere: at the one in the middle. */
  stepTo(focus, [x, y]) {
    const p = this.screen();
    const ahead = (dx, dy) => {
      const along = dx * x + dy * y;
      return along > 0.5 && along >= Math.abs(dx * y + dy * x);
    };
    const known = focus >= 0 && !Number.isNaN(p[2 * focus]);
    const next = known ? this.nearest(p[2 * focus], p[2 * focus + 1], 1e4, ahead) : this.nearest(this.width / 2, this.height / 2, 1e4);
    if (next < 0) return;
    this.app.look(this.run.set, next);
    const [u, v] = this.screen().subarray(2 * next, 2 * next + 2), { k } = this.scale(), { view } = this.app;
    if (u < 0 || u > this.width) view.x += (u - this.width / 2) / k; // a point beyond the edge comes to the middle
    if (v < 0 || v > this.height) view.y -= (v - this.height / 2) / k;
    this.app.say(this.app.describe(this.run, next));
  }
}

// ----------------------------------------------------------------------------------------------------- the whole of it

class Explorer {
  constructor(el, everything, { kept = {}, changed = () => {}, report = false } = {}) {
    Object.assign(this, { el, everything, changed, report, frames: 0 });
    this.open(kept);
  }

  /** Show one run or two (`kept.pair`), with what else was chosen before. */
  open(kept) {
    const { runs, sets, colours } = this.everything;
    this.pair = kept.pair ?? [0, 1].slice(0, runs.length);
    const shown = this.pair.map((i) => runs[i]), used = [...new Set(shown.map((run) => run.set))];
    this.used = used;
    this.data = { colours, sets: used.map((s) => sets[s]),
      runs: shown.map((run) => ({ ...run, ...run.own, set: used.indexOf(run.set) })) };
    Object.assign(this, { playing: false, limit: PAGE, rows: null, ranges: null, frame: null, motion: null });
    this.steps = [...new Set(shown.flatMap((run) => run.epochs))].sort((a, b) => a - b);
    this.kinds = Object.keys(LAYOUTS).filter((kind) => shown.every((run) => run.places[kind]));
    // What a method knows besides of each sample, as BCL's strength: whole numbers (Int16Array) are labels.
    const own = shown.flatMap((run) => Object.entries(run.own));
    const titles = (kind) => Object.fromEntries(own.filter(([, v]) => v instanceof kind).map(([k]) => [k, k.replaceAll("_", " ")]));
    this.quantities = { ...QUANTITIES, ...titles(Float32Array) };
    this.labels = { cluster: "cluster", ...titles(Int16Array) };
    const titled = { group: "group", label: "class", ...this.labels, ...this.quantities };
    const known = (by) => !(by in this.data.sets[0]) || this.data.sets.some((set) => set[by]);
    this.colourings = Object.fromEntries(Object.entries(titled).filter(([by]) => known(by)));
    this.restore(kept);
    this.hovered = { set: 0, row: -1 };
    this.still = matchMedia("(prefers-reduced-motion: reduce)");
    this.name = `tase-${Math.random().toString(36).slice(2, 10)}`; // of its sheets: there may be other explorers on the page
    this.build();
    this.listen();
    this.readTheme();
    this.fitView();
    this.resize();
    this.refresh();
  }

  /** Show another run on one side; the one that is there already changes sides. */
  showRun(side, i) {
    const pair = this.pair.map((old, k) => (k === side ? i : old === i ? this.pair[side] : old));
    const kept = { ...this.state(), pair, view: null };
    this.close();
    this.open(kept);
    this.say(`${this.data.runs.map((run) => run.title).join(" and ")} are shown`);
  }

  /** What the user has chosen, so that a page with newer data, or other runs, can go on from it. */
  state() {
    const { view, filters, on, query, by, kind, picked, pair, used } = this, { sets } = this.data;
    const epoch = this.playing ? this.epoch : this.motion?.to ?? this.epoch; // a step that has begun counts
    const atEnd = epoch === this.steps.at(-1), { set, row } = this.looked;
    const chosen = new Map(used.map((s, k) => [s, new Set(this.selected(k).map((r) => sets[k].index[r]))]));
    const looked = { set: used[set], image: sets[set].index[row] };
    return { epoch: atEnd ? null : epoch, kind: picked ? kind : null, picked, chosen, looked, used, view, filters, on, query, by, pair };
  }

  restore(kept) {
    const { sets, runs } = this.data, at = this.used.indexOf(kept.looked?.set);
    const few = sets[0].label && sets[0].classes.length <= 10;
    this.epoch = kept.epoch ?? this.steps.at(-1);
    this.picked = kept.picked; // the user has chosen a layout
    this.kind = this.kinds.includes(kept.kind) ? kept.kind : this.kinds[0];
    this.chosen = sets.map(({ index }, s) => Uint8Array.from(index, (image) => kept.chosen?.get(this.used[s])?.has(image)));
    this.looked = at < 0 ? { set: 0, row: -1 } : { set: at, row: sets[at].index.indexOf(kept.looked.image) };
    this.view = kept.view || { x: 0, y: 0, zoom: 1 };
    const filters = Object.entries(kept.filters || {}).filter(([name]) => runs.some((run) => run[name]));
    this.filters = Object.fromEntries(filters); // quantity -> [low, high]
    this.query = kept.used?.join() === this.used.join() ? kept.query : ""; // other images may match
    this.by = kept.by in this.colourings ? kept.by : few ? "label" : sets[0].group ? "group" : "tau";
    this.on = (kept.by === this.by && kept.on) || new Set(); // codes of the legend that are shown; empty: all
  }

  close() {
    this.ends.abort();
    cancelAnimationFrame(this.frame);
    this.el.replaceChildren();
  }

  // ---- what is on the page

  build() {
    const { runs, sets } = this.data;
    const section = (name, label, more = {}) => h("section", { class: `tase-${name}`, "aria-label": label, ...more });
    this.maps = runs.map((run) => new PointMap(this, run));
    this.live = h("div", { role: "status", "aria-live": "polite", class: "tase-live" });
    this.tip = h("div", { class: "tase-tip", hidden: true, role: "tooltip" });
    this.legend = section("legend", "Legend: choose what is shown");
    this.filterBox = section("filters", "Filters");
    this.why = section("why", "Why this temperature");
    this.curves = section("curves", "Over training time");
    this.gallery = section("gallery", "Images selected");
    this.filterBox.append(...Object.entries(this.quantities).map(([name, title]) => this.filter(name, title)));
    const placed = this.maps.filter((map) => map.places);
    const maps = h("div", { class: "tase-maps" }, placed.map((map) => map.node));
    const side = h("aside", {}, this.legend, this.filterBox);
    this.stage = h("div", { class: `tase-stage ${placed.length === 1 ? "one" : "two"}` }, maps, this.why, this.curves, this.gallery, side);
    const said = [...sets.map((set) => set.remark), ...runs.flatMap((run) => run.remarks), ...this.remarks()];
    const remarks = [...new Set(said.filter(Boolean))].join(" ");
    this.root = h("div", { class: "tase" }, this.report ? this.title() : null, this.bar(),
      remarks ? h("p", { class: "tase-remark" }, remarks) : null, this.stage, this.below(), this.live, this.tip);
    this.el.replaceChildren(this.sheets(), this.root);
  }

  /** The pictures' sheets as a style: the strict content policy of VS Code lets no blob: address through. */
  sheets() {
    const rules = this.data.sets.flatMap(({ tiles }, s) => (tiles ? tiles.sheets : []).map((sheet, k) =>
      `.${this.name}-${s}-${k} { background-image: url(data:image/webp;base64,${base64(sheet)}); }`));
    return h("style", {}, rules.join("\n"));
  }

  listen() {
    this.ends = new AbortController();
    const { signal } = this.ends;
    const theme = () => {
      this.readTheme();
      this.refresh();
    };
    this.root.addEventListener("keydown", (e) => this.key(e));
    // JupyterLab's own shortcuts ("a" adds a cell) look at the element that has the focus only.
    this.root.addEventListener("focusin", (e) => e.target.setAttribute("data-lm-suppress-shortcuts", "true"));
    if (this.report) document.addEventListener("keydown", (e) => this.root.contains(e.target) || this.key(e), { signal });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", theme, { signal });
    const sizes = new ResizeObserver(() => this.resize());
    this.maps.forEach((map) => sizes.observe(map.box));
    const themes = new MutationObserver(theme);
    const attributeFilter = ["class", "style", "theme", "data-jp-theme-light", "data-jp-theme-name"];
    for (const node of [document.documentElement, document.body]) themes.observe(node, { attributes: true, attributeFilter });
    signal.addEventListener("abort", () => [sizes, themes].forEach((observer) => observer.disconnect()));
  }

  remarks() {
    const [set] = this.data.sets, m = set.index.length, said = [];
    if (this.data.sets.length > 1)
      said.push("The runs do not show the same images: their selections are not linked.");
    if (m < set.total) said.push(`Shown are ${number(m)} of ${number(set.total)} images.`);
    if (!set.label) said.push("These images have no labels.");
    return said;
  }

  title() {
    const [run, other] = this.data.runs;
    const images = number(this.data.sets[0].total);
    const line = `${run.settings.preset} · ${images} images · ${run.epochs.length} snapshots over ${run.last} epochs`;
    const trust = run.sentences.length ? h("p", { class: "tase-trust" }, run.sentences[0]) : null;
    const names = other ? `${run.title} and ${other.title}` : `${run.title} on ${run.preset}`;
    return h("header", {}, h("h1", {}, names), h("p", {}, line), trust);
  }

  bar() {
    const dropdown = (label, options, value, change) => {
      const entries = options.map(([key, text]) => h("option", { value: key, selected: key === value }, text));
      const select = h("select", { "aria-label": label, onchange: () => change(select.value, select) }, entries);
      return h("label", {}, h("span", {}, label), select);
    };
    const colour = (by) => {
      this.by = by;
      this.on.clear();
      this.refresh();
    };
    const layout = (kind) => {
      Object.assign(this, { kind, picked: true });
      this.fitView();
      this.refresh();
    };
    const choose = (key, select) => {
      select.value = "";
      this.choose(key);
    };
    this.playButton = button("Play", () => this.play(!this.playing), { class: "tase-play", title: "space" });
    this.slider = h("input", { type: "range", min: 0, max: this.steps.length - 1, step: 1, "aria-label": "Epoch",
      oninput: () => this.goTo(this.steps[this.slider.value]) });
    this.readout = h("output", { class: "tase-epoch" });
    this.search = h("input", { type: "search", placeholder: "number, file, class", value: this.query,
      title: "number, file, class, group or pseudo-label, such as cluster 3", "aria-label": "Search images", oninput: () => this.find(this.search.value) });
    const { runs } = this.everything, names = runs.map((run, i) => [i, `${run.title} · ${run.name}`]);
    const sides = this.pair.map((i, side) => dropdown(side ? "Right" : "Left", names, i, (k) => this.showRun(side, Number(k))));
    return h("div", { class: "tase-bar", role: "toolbar", "aria-label": "Time, colours and selection" },
      this.playButton,
      h("label", { class: "tase-time" }, this.slider, this.readout),
      runs.length > 2 ? sides : null,
      dropdown("Colour", Object.entries(this.colourings), this.by, colour),
      this.kinds.length > 1 ? dropdown("Layout", this.kinds.map((k) => [k, LAYOUTS[k]]), this.kind, layout) : null,
      dropdown("Select", this.choices(), "", choose),
      h("label", { class: "tase-search" }, h("span", {}, "Search"), this.search),
      button("Clear", () => this.clear(), { title: "Escape" }),
      button("CSV", () => this.saveCSV()));
  }

  /** Rare, common and double images; settings, accuracies and how far to believe it, for each run. */
  below() {
    const { rare } = this.data.runs[0];
    const names = { rare: "Rarest", common: "Most common", duplicates: "Near-duplicates", blank: "Blank", broken: "Unreadable", clusters: "Clusters" };
    const keys = Object.keys(names).filter((key) => rare[key].length);
    this.listBox = h("div", { class: "tase-tiles", role: "tabpanel", "aria-label": "Images of the list" });
    this.tabs = keys.map((key) =>
      button(`${names[key]} (${rare[key].length})`, () => this.list(key), { role: "tab", "data-key": key })
    );
    this.list(keys[0]);
    const heading = `What ${this.data.runs[0].title} takes to be rare, and what common`, notes = rare.remarks.join(" ");
    const lists = h("section", { class: "tase-lists" }, h("h2", {}, heading), notes ? h("p", { class: "tase-remark" }, notes) : null,
      h("div", { role: "tablist" }, this.tabs), this.listBox);
    return h("div", { class: "tase-below" }, lists, h("section", { class: "tase-about" }, this.data.runs.map((run) => this.about(run))));
  }

  list(key) {
    const [{ rare }] = this.data.runs, [{ index }] = this.data.sets;
    const tile = (image, named = true) => {
      const row = index.indexOf(image);
      return row < 0 ? null : this.tile(0, row, named ? this.shortName(0, row) : "");
    };
    const line = (...children) => h("div", { class: "tase-pair" }, ...children);
    const lines = {
      broken: () => rare.broken.map(([file, why]) => line(h("b", {}, file), h("small", {}, why))),
      duplicates: () => rare.duplicates.map((pair) => line(pair.map((image) => tile(image)))),
      clusters: () => rare.clusters.map(({ cluster, size, images }) =>
        line(h("span", {}, `cluster ${cluster}: ${number(size)} images`), images.map((image) => tile(image, false)))),
    };
    this.tabs.forEach((tab) => tab.setAttribute("aria-selected", String(tab.dataset.key === key)));
    const shown = lines[key] ? lines[key]() : rare[key].map((image) => tile(image));
    this.listBox.replaceChildren(...shown.filter(Boolean));
  }

  about(run) {
    const columns = [...new Set(Object.values(run.scores).flatMap(Object.keys))];
    const cells = (scores) => columns.map((c) => h("td", {}, scores[c] === undefined ? "" : scores[c].toFixed(1)));
    const rows = Object.entries(run.scores).map(([name, scores]) => h("tr", {}, h("th", {}, name), cells(scores)));
    const head = h("tr", {}, ["accuracy, %", ...columns].map((c) => h("th", {}, c)));
    const settings = Object.entries(run.settings).flatMap(([key, value]) => [h("dt", {}, key), h("dd", {}, value)]);
    return h("article", {}, h("h3", {}, `${run.title} (${run.name})`), run.sentences.map((said) => h("p", {}, said)),
      h("dl", {}, settings), rows.length ? h("table", {}, h("thead", {}, head), h("tbody", {}, rows)) : null);
  }

  // ---- colours, filters, drawing

  /** Whether the ground is dark; in a notebook that is known only when the page has taken the widget in. */
  readTheme() {
    const ground = (getComputedStyle(this.root).backgroundColor.match(/[\d.]+/g) ?? [255, 255, 255]).slice(0, 3).map(Number);
    const dark = 0.2126 * ground[0] + 0.7152 * ground[1] + 0.0722 * ground[2] < 110;
    const [ink, soft] = dark ? [[240, 240, 240], [150, 155, 165]] : [[25, 25, 30], [150, 150, 155]];
    this.theme = { dark, ground, ink, soft };
    this.root.classList.toggle("dark", dark);
  }

  /** The box around nearly all places of all runs at all epochs: it stays while points move. */
  fitView() {
    const ends = [0, 1].map((axis) => {
      const values = [];
      for (const { places } of this.maps) {
        const jump = 2 * Math.max(1, Math.floor((places?.length || 0) / 16000));
        for (let i = axis; i < (places?.length || 0); i += jump) if (places[i] !== NOWHERE) values.push(places[i] / 32767);
      }
      return [quantile(values, 0.003), quantile(values, 0.997)];
    });
    const [[left, right], [bottom, top]] = ends;
    this.fit = { x: (left + right) / 2 || 0, y: (bottom + top) / 2 || 0, w: right - left || 1, h: top - bottom || 1 };
  }

  /** Zoom by a factor, 0 for all; what is under the pixel [u, v] of a map stays there. */
  zoom(factor, map = this.maps.find((one) => one.places) ?? this.maps[0], [u, v] = [map.width / 2, map.height / 2]) {
    if (factor) {
      const before = map.scale().k;
      this.view.zoom = Math.max(1, Math.min(40, this.view.zoom * factor));
      const shift = 1 / before - 1 / map.scale().k;
      this.view.x += (u - map.width / 2) * shift;
      this.view.y -= (v - map.height / 2) * shift;
    } else this.view = { x: 0, y: 0, zoom: 1 };
    this.dirty();
  }

  /** Snapshot of a run that is shown: the last that is not later than the epoch. */
  now(run) {
    return between(run.epochs, this.epoch).i;
  }

  /** A quantity of a row of a run, at the epoch shown or at snapshot t. */
  value(run, name, row, t = this.now(run)) {
    return run[name]?.[t * this.data.sets[run.set].index.length + row] ?? NaN;
  }

  /** How points are coloured: a code for each row with names and colours, or a share of a range of values. */
  colouring(run) {
    const set = this.data.sets[run.set], m = set.index.length, t = this.now(run), { by } = this;
    if (by === "group") return { code: (r) => set.group?.[r] ?? -1, names: set.groups, colours: this.groupColours.map(rgb) };
    const cycle = (names) => names.map((_, i) => rgb(CLASSES[i % CLASSES.length]));
    if (by === "label") return { code: (r) => set.label?.[r] ?? -1, names: set.classes, colours: cycle(set.classes) };
    if (by in this.labels) {
      const values = run[by] ?? [], many = by === "cluster" ? run.sizes[t].length : 1 + values.reduce((a, b) => Math.max(a, b), -1);
      const names = Array.from({ length: many }, (_, k) => `${this.labels[by]} ${k}`);
      return { code: (r) => values[t * m + r] ?? -1, names, colours: cycle(names) };
    }
    const [low, high] = this.range(by);
    return { share: (r) => (this.value(run, by, r, t) - low) / (high - low), low, high };
  }

  /** Nearly all values of a quantity over all runs and epochs: the same colour is the same value everywhere. */
  range(by) {
    this.ranges ??= {};
    if (!this.ranges[by]) {
      const runs = this.data.runs.filter((run) => run[by]);
      const low = Math.min(...runs.map((run) => quantile(run[by], 0.005)));
      const high = Math.max(...runs.map((run) => quantile(run[by], 0.995)));
      this.ranges[by] = high - low > 1e-6 ? [low, high] : [low - 0.05, high + 0.05];
    }
    return this.ranges[by];
  }

  get filtering() {
    return this.on.size > 0 || Object.keys(this.filters).length > 0;
  }

  /** All that changes with a snapshot, a colour, a filter or a selection; `moving`: leave out what can wait. */
  refresh(moving = false) {
    for (const map of this.maps) this.paint(map);
    this.drawn = this.snapshots();
    this.drawLegend();
    this.drawFilters();
    this.drawWhy();
    if (!moving) this.drawCurves(); // they show all epochs
    if (!moving || this.maps[0].m <= 5000) this.drawGallery();
    this.dirty();
  }

  /** Colours and states of a map's points. */
  paint({ run, m, colour, state, counts, caption }) {
    const look = this.colouring(run), chosen = this.chosen[run.set], t = this.now(run), soft = pack(this.theme.soft);
    const limits = Object.entries(this.filters).filter(([name]) => run[name]).map(([name, ends]) => [run[name], ...ends]);
    const tones = look.colours?.map(pack) ?? [...Array(256).keys()].map((k) => pack(viridis(k / 255, this.theme.dark)));
    counts.fill(0);
    for (let r = 0; r < m; r++) {
      const k = look.code ? look.code(r) : Math.round(255 * Math.max(0, Math.min(1, look.share(r)))); // NaN: not known
      colour[r] = tones[k] ?? soft;
      const passes = (!this.on.size || this.on.has(k)) &&
        limits.every(([values, low, high]) => values[t * m + r] >= low && values[t * m + r] <= high);
      state[r] = !passes ? HIDDEN : chosen[r] ? CHOSEN : SHOWN;
      counts[state[r]]++;
    }
    caption.textContent = `epoch ${run.epochs[t]}`;
  }

  snapshots() {
    return this.data.runs.map((run) => this.now(run)).join();
  }

  resize() {
    const { dark } = this.theme;
    this.maps.forEach((map) => map.resize());
    this.readTheme();
    if (this.theme.dark !== dark) this.refresh();
    else this.drawCurves();
    this.dirty();
  }

  dirty() {
    this.frame ??= requestAnimationFrame((now) => this.tick(now));
  }

  // ---- time

  tick(now) {
    this.frame = null;
    if (this.motion) this.advance(now);
    if (this.snapshots() !== this.drawn) this.refresh(this.playing);
    this.maps.forEach((map) => map.draw());
    if (!this.frames++) performance.mark("first picture");
    const near = this.steps.findLastIndex((epoch) => epoch <= this.epoch + 1e-9);
    if (this.playing || !this.motion) this.slider.value = near;
    this.slider.setAttribute("aria-valuetext", `epoch ${this.steps[near]}`);
    this.readout.textContent = `epoch ${wholeEpoch(this.epoch)}`;
    for (const { line, x } of this.cursors) {
      line.setAttribute("x1", x(this.epoch));
      line.setAttribute("x2", x(this.epoch));
    }
  }

  /** The epoch of this moment, on the way that play or a step of the slider has begun. */
  advance(now) {
    const { start, length, from, to, first } = this.motion;
    const share = Math.max(0, Math.min(1, (now - start) / length));
    if (this.playing) { // each step takes as long, however many epochs lie in it
      const place = first + share * (this.steps.length - 1 - first), i = Math.floor(place);
      const part = this.still.matches ? 0 : place - i;
      this.epoch = this.steps[i] + part * ((this.steps[i + 1] ?? this.steps[i]) - this.steps[i]);
    } else this.epoch = from + (to - from) * share * (2 - share);
    if (share === 1) {
      this.epoch = to;
      this.motion = null;
      if (this.playing) this.play(false);
    }
    this.dirty();
  }

  play(on) {
    if (on && this.epoch >= this.steps.at(-1)) this.epoch = this.steps[0];
    const first = this.steps.findLastIndex((epoch) => epoch <= this.epoch);
    const length = Math.max(1, STEP * (this.steps.length - 1 - first));
    this.playing = on;
    this.motion = on ? { first, to: this.steps.at(-1), start: performance.now(), length } : null;
    this.playButton.textContent = on ? "Pause" : "Play";
    this.playButton.setAttribute("aria-pressed", String(on));
    if (!on) {
      this.refresh();
      this.changed();
    }
    this.dirty();
  }

  goTo(epoch) {
    if (this.playing) this.play(false);
    if (this.still.matches) this.epoch = epoch;
    else this.motion = { from: this.epoch, to: epoch, start: performance.now(), length: 350 };
    this.slider.value = this.steps.findLastIndex((step) => step <= epoch);
    this.changed(epoch);
    this.dirty();
  }

  step(by) {
    const now = this.motion?.to ?? this.epoch;
    const i = this.steps.findLastIndex((epoch) => epoch <= now + 1e-9) + by;
    const epoch = this.steps[Math.max(0, Math.min(this.steps.length - 1, i))];
    this.goTo(epoch);
    this.say(`epoch ${epoch}`);
  }

  key(e) {
    const typing = e.target.matches?.("input[type=search], select"), pressing = e.target.matches?.("button");
    if (e.key === "Escape") this.clear();
    else if (typing || e.ctrlKey || e.metaKey || e.altKey) return;
    else if (e.key === " " && !pressing) this.play(!this.playing);
    else if (e.key === "[") this.step(-1);
    else if (e.key === "]") this.step(1);
    else if (e.key === "/") this.search.focus();
    else return;
    e.preventDefault();
    e.stopPropagation();
  }

  // ---- selecting

  /** Rows that are selected, of a set of images. */
  selected(s) {
    this.rows ??= [];
    if (!this.rows[s]) {
      this.rows[s] = [];
      this.chosen[s].forEach((on, r) => on && this.rows[s].push(r));
    }
    return this.rows[s];
  }

  focusOf(s) {
    return this.looked.set === s ? this.looked.row : -1;
  }

  hoverOf(s) {
    return this.hovered.set === s ? this.hovered.row : -1;
  }

  /** Rows of the nearest images at snapshot t. */
  neighbours(run, row, t) {
    if (!run.near) return [];
    const start = (t * this.data.sets[run.set].index.length + row) * NEAR;
    return [...run.near.subarray(start, start + NEAR)].filter((r) => r >= 0);
  }

  /** Rows that pass the filters, of the first run. */
  visible() {
    const { state, m } = this.maps[0];
    return [...Array(m).keys()].filter((r) => state[r] !== HIDDEN);
  }

  /** Select rows of a set of images: replace, add or toggle; one of them may be looked at. */
  select(s, rows, how = "replace", look = -1) {
    this.query = this.search.value = "";
    if (how === "replace") this.chosen.forEach((chosen) => chosen.fill(0));
    for (const r of rows) this.chosen[s][r] = how === "toggle" ? 1 - this.chosen[s][r] : 1;
    this.looked = { set: s, row: look };
    this.afterSelection();
  }

  afterSelection() {
    this.rows = null;
    this.limit = PAGE;
    this.refresh();
    this.changed();
    this.say(this.countText());
  }

  look(s, row) {
    this.looked = { set: s, row };
    this.drawWhy();
    this.drawCurves();
    this.dirty();
  }

  clear() {
    if (this.playing) this.play(false);
    this.query = this.search.value = "";
    this.filters = {};
    this.on.clear();
    for (const box of this.filterBox.children) box.reset();
    this.chosen.forEach((chosen) => chosen.fill(0));
    this.looked = { set: 0, row: -1 };
    this.afterSelection();
    this.say("Nothing selected, all images shown");
  }

  find(text) {
    this.query = text.trim().toLowerCase();
    const found = this.data.sets.map((set, s) => (this.query ? this.matches(set, s) : []));
    found.forEach((rows, s) => {
      this.chosen[s].fill(0);
      for (const r of rows) this.chosen[s][r] = 1;
    });
    this.looked = { set: 0, row: found[0].length === 1 ? found[0][0] : -1 };
    this.afterSelection();
  }

  /** Rows whose number, cluster, class, group or file name is what is searched for; a class's whole name goes first. */
  matches(set, s) {
    const { query } = this, run = this.data.runs.find((other) => other.set === s);
    const rows = [...Array(set.index.length).keys()];
    const cluster = query.match(/^cluster\s*(\d+)$/);
    if (cluster) return rows.filter((r) => this.value(run, "cluster", r) === Number(cluster[1]));
    const whole = set.classes.findIndex((name) => name.toLowerCase() === query);
    const inClass = (r) => {
      if (whole >= 0) return set.label[r] === whole;
      return set.label && query.length > 1 && set.classes[set.label[r]].toLowerCase().includes(query);
    };
    const inGroup = (r) => set.group && set.groups[set.group[r]] === query;
    const inPath = (r) => whole < 0 && set.paths?.[r].toLowerCase().includes(query);
    return rows.filter((r) => String(set.index[r]) === query || inClass(r) || inGroup(r) || inPath(r));
  }

  /** Selections that need no mouse: [key, text]. */
  choices() {
    const [set] = this.data.sets, found = [["", "choose …"], ["all", "all images shown"]];
    if (set.group) found.push(["mistaken", "mid and tail with the highest τ"], ["missed", "head with the lowest τ"]);
    if (this.steps.length > 1) found.push(["moved", "moved to another cluster just now"], ["stay", "stay in their cluster from now on"]);
    if (set.group) found.push(...set.groups.map((name, g) => [`group:${g}`, name]));
    return [...found, ...set.classes.slice(0, 200).map((name, c) => [`label:${c}`, `class ${name}`])];
  }

  choose(key) {
    const [set] = this.data.sets, [run] = this.data.runs, t = this.now(run), [kind, code] = key.split(":");
    const rows = [...Array(set.index.length).keys()];
    const cluster = (r, u) => this.value(run, "cluster", r, u), tau = (r) => this.value(run, "tau", r);
    const rules = {
      all: () => this.visible(),
      group: () => rows.filter((r) => set.group[r] === Number(code)),
      label: () => rows.filter((r) => set.label[r] === Number(code)),
      moved: () => rows.filter((r) => cluster(r, t) !== cluster(r, Math.max(0, t - 1))),
      stay: () => rows.filter((r) => run.epochs.every((_, u) => u < t || cluster(r, u) === cluster(r, t))),
      mistaken: () => rows.filter((r) => set.group[r] > 0).sort((a, b) => tau(b) - tau(a)).slice(0, 20),
      missed: () => rows.filter((r) => set.group[r] === 0).sort((a, b) => tau(a) - tau(b)).slice(0, 20),
    };
    if (rules[kind]) this.select(0, rules[kind]());
  }

  /** What the gallery shows: [set, row] of the selection, else of what passes the filters; null where there is neither. */
  gathered() {
    const some = this.data.sets.flatMap((_, s) => this.selected(s).map((r) => [s, r]));
    if (some.length || this.query) return some;
    return this.filtering ? this.visible().map((r) => [0, r]) : null;
  }

  countText() {
    const some = this.gathered(), [set] = this.data.sets;
    if (!some) return "";
    const own = some.filter(([s]) => s === 0).map(([, r]) => r), n = own.length, others = some.length - n;
    const noun = n === 1 ? "image" : "images";
    const verb = this.query || !this.selected(0).length ? (n === 1 ? "matches" : "match") : "selected";
    const inGroup = (g) => number(own.filter((r) => set.group[r] === g).length);
    const groups = set.group && n ? `: ${set.groups.map((name, g) => `${name} ${inGroup(g)}`).join(", ")}` : "";
    return `${number(n)} ${noun} ${verb}${groups}${others ? `; ${number(others)} of the other run` : ""}`;
  }

  say(text) {
    this.live.textContent = text;
  }

  // ---- images in words and pictures

  nameOf(s, row) {
    const set = this.data.sets[s];
    return set.paths ? set.paths[row] : `image ${set.index[row]}`;
  }

  shortName(s, row) {
    const set = this.data.sets[s];
    return set.paths ? set.paths[row].split("/").pop() : String(set.index[row]);
  }

  /** Class and group of an image, or "". */
  classOf(s, row) {
    const set = this.data.sets[s];
    if (!set.label) return "";
    return `class ${set.classes[set.label[row]]}${set.group ? ` (${set.groups[set.group[row]]})` : ""}`;
  }

  describe(run, row) {
    const numbers = `τ ${fixed(this.value(run, "tau", row))}, w ${fixed(this.value(run, "weight", row))}`;
    const parts = [this.nameOf(run.set, row), this.classOf(run.set, row), `cluster ${this.value(run, "cluster", row)}`, numbers];
    return parts.filter(Boolean).join(", ");
  }

  /** A picture cut from its sheet, `px` pixels wide; the image's number where there is none. */
  picture(s, row, px) {
    const { tiles, index } = this.data.sets[s], place = tiles ? tiles.place[row] : -1;
    const label = [this.nameOf(s, row), this.classOf(s, row)].filter(Boolean).join(", ");
    const size = `width:${px}px;height:${px}px;`;
    if (place < 0) return h("span", { class: "tase-none", role: "img", "aria-label": label, style: size }, String(index[row]));
    const within = place % tiles.per, x = (within % tiles.columns) * px, y = Math.floor(within / tiles.columns) * px;
    const sharp = px >= 2 * tiles.side ? "image-rendering:pixelated;" : "";
    const sheet = `${this.name}-${s}-${Math.floor(place / tiles.per)}`;
    const ground = `background-position:-${x}px -${y}px;background-size:${tiles.columns * px}px auto`;
    return h("span", { class: `tase-picture ${sheet}`, role: "img", "aria-label": label, style: size + sharp + ground });
  }

  /** A picture that is looked at when clicked, added to the selection with Shift, and ringed on the maps on hover. */
  tile(s, row, text) {
    const hover = (r) => {
      this.hovered = { set: s, row: r };
      this.dirty();
    };
    const click = (e) => (e.shiftKey ? this.select(s, [row], "toggle", row) : this.look(s, row));
    const enter = () => hover(row), leave = () => hover(-1);
    const listeners = { onpointerenter: enter, onfocus: enter, onpointerleave: leave, onblur: leave };
    const attributes = { class: "tase-tile", title: this.nameOf(s, row), ...listeners };
    return button([this.picture(s, row, 48), text ? h("small", {}, text) : null], click, attributes);
  }

  hover(map, row, e) {
    const { set } = map.run, key = `${this.maps.indexOf(map)}:${row}:${this.drawn}`;
    if (row < 0 && this.tip.hidden) return;
    this.hovered = { set, row };
    this.tip.hidden = row < 0;
    map.over.style.cursor = row < 0 ? "" : "pointer";
    if (row >= 0) {
      if (this.tip.dataset.of !== key) this.tip.replaceChildren(this.picture(set, row, 96), h("p", {}, this.describe(map.run, row)));
      const box = this.root.getBoundingClientRect(), x = e.clientX - box.left;
      this.tip.dataset.of = key;
      this.tip.style.left = `${x + 260 > box.width ? x - 250 : x + 16}px`;
      this.tip.style.top = `${e.clientY - box.top + 14}px`;
    }
    this.dirty();
  }

  // ---- legend, filters, curves, gallery, why

  drawLegend() {
    // The first that has it: one set of images may have no groups, and one method may know more.
    const having = Math.max(0, this.data.runs.findIndex((run) => run[this.by] ?? this.data.sets[run.set][this.by]));
    const look = this.colouring(this.data.runs[having]), title = this.colourings[this.by];
    if (!look.code) {
      const stops = [0, 0.25, 0.5, 0.75, 1].map((share) => css(viridis(share, this.theme.dark)));
      const ramp = h("div", { class: "tase-ramp", style: `background:linear-gradient(to right,${stops})` });
      const ends = h("div", { class: "tase-ends" }, h("span", {}, fixed(look.low)), h("span", {}, fixed(look.high)));
      this.legend.replaceChildren(h("h2", {}, title), ramp, ends);
      return;
    }
    const counts = new Array(look.names.length).fill(0);
    for (let r = 0; r < this.maps[having].m; r++) counts[look.code(r)]++;
    const codes = [...counts.keys()].filter((k) => counts[k]);
    if (this.by !== "group") codes.sort((a, b) => counts[b] - counts[a]);
    const entries = codes.slice(0, 250).map((k) => this.legendEntry(k, look, counts[k]));
    const heading = h("h2", {}, title, h("small", {}, " click: only these"));
    swap(this.legend, heading, h("div", { class: "tase-entries" }, entries));
  }

  legendEntry(code, look, count) {
    const toggle = () => {
      if (!this.on.delete(code)) this.on.add(code);
      this.afterSelection();
    };
    const dot = h("i", { style: `background:${css(look.colours[code])}` });
    const off = this.on.size && !this.on.has(code);
    const attributes = { "aria-pressed": String(this.on.has(code)), class: off ? "off" : "" };
    return button([dot, h("span", {}, look.names[code]), h("small", {}, number(count))], toggle, attributes);
  }

  /** A histogram with two handles: only images between them are shown; a click on a bar shows these only. */
  filter(name, title) {
    const [low, high] = this.range(name), value = (bin) => low + (bin / BINS) * (high - low);
    const text = h("output"), chart = h("svg", { viewBox: `0 0 ${BINS} 40`, preserveAspectRatio: "none", "aria-hidden": true });
    chart.append(...["all", "some", "other"].map((kind) => h("path", { class: kind })));
    const apply = () => {
      const [a, b] = handles.map((handle) => Number(handle.value)).sort((p, q) => p - q);
      const whole = a === 0 && b === BINS;
      if (whole) delete this.filters[name];
      else this.filters[name] = [a === 0 ? -Infinity : value(a), b === BINS ? Infinity : value(b)];
      text.textContent = whole ? "" : `${fixed(value(a))} to ${fixed(value(b))}`;
      this.afterSelection();
    };
    const bin = (v) => Math.round(((v - low) / (high - low)) * BINS);
    const [from, to] = this.filters[name] || [-Infinity, Infinity];
    const handles = [["smallest", from === -Infinity ? 0 : bin(from)], ["largest", to === Infinity ? BINS : bin(to)]].map(
      ([which, at]) => h("input", { type: "range", min: 0, max: BINS, value: at, "aria-label": `${which} ${title}`, oninput: apply })
    );
    chart.addEventListener("click", (e) => {
      const box = chart.getBoundingClientRect(), at = Math.floor(((e.clientX - box.left) / box.width) * BINS);
      [handles[0].value, handles[1].value] = [at, at + 1];
      apply();
    });
    const ends = h("div", { class: "tase-ends" }, h("span", {}, fixed(low)), h("span", {}, fixed(high)));
    const box = h("div", { class: "tase-filter", "data-name": name }, h("div", {}, h("b", {}, title), text), chart,
      h("div", { class: "tase-range" }, handles), ends);
    box.reset = () => {
      [handles[0].value, handles[1].value, text.textContent] = [0, BINS, ""];
    };
    return box;
  }

  /** Histograms at the epoch shown: all images on the page grey, those selected or not filtered out blue, the other run a line. */
  drawFilters() {
    for (const box of this.filterBox.children) {
      const [grey, blue, line] = box.querySelectorAll("path");
      const bars = (counts, most) =>
        counts.map((n, b) => (n ? `M${b} 40V${40 - Math.max(1.5, (38 * n) / most)}h.86V40Z` : "")).join("");
      this.data.runs.forEach((run, i) => {
        const { all, some } = this.histogram(this.maps[i], box.dataset.name), most = Math.max(...all, 1);
        if (i) line.setAttribute("d", all.map((n, b) => `${b ? "L" : "M"}${b} ${40 - (38 * n) / most}h1`).join(""));
        else {
          grey.setAttribute("d", bars(all, most));
          blue.setAttribute("d", bars(some, this.selected(run.set).length ? Math.max(...some, 1) : most));
        }
      });
    }
  }

  histogram({ run, m, state }, name) {
    const [low, high] = this.range(name), t = this.now(run), least = this.selected(run.set).length ? CHOSEN : SHOWN;
    const all = new Array(BINS).fill(0), some = new Array(BINS).fill(0);
    for (let r = 0; r < m; r++) {
      const v = this.value(run, name, r, t);
      if (!Number.isFinite(v)) continue;
      const bin = Math.max(0, Math.min(BINS - 1, Math.floor(((v - low) / (high - low)) * BINS)));
      all[bin]++;
      if (state[r] >= least) some[bin]++;
    }
    return { all, some };
  }

  /** Mean of a quantity of some rows at each snapshot. */
  means(run, name, rows) {
    return run.epochs.map((_, t) => {
      let sum = 0, n = 0;
      for (const r of rows) {
        const v = this.value(run, name, r, t);
        if (!Number.isFinite(v)) continue;
        sum += v;
        n++;
      }
      return n ? sum / n : NaN;
    });
  }

  /** Means of each group, or of all images, at each snapshot: of all that the history is of, not only of those shown. */
  groupMeans(run, name) {
    return run.means[name].map((values) => values.map((value) => value ?? NaN));
  }

  /** Colours of head, mid and tail: the figures', on this ground. */
  get groupColours() {
    return this.data.colours[this.theme.dark ? "dark" : "light"];
  }

  groupColour(set, g) {
    return set.group ? this.groupColours[g] : "var(--t-soft)";
  }

  /** The four quantities over time: of the groups, and of the image looked at or the selection. */
  drawCurves() {
    this.cursors = [];
    const ink = "var(--t-ink)";
    const figures = Object.entries(this.quantities).map(([name, title]) => {
      const series = this.data.runs.flatMap((run, i) => {
        if (!run[name]) return [];
        const set = this.data.sets[run.set], focus = this.focusOf(run.set);
        const rows = focus >= 0 ? [focus] : this.selected(run.set);
        const line = (values, colour, width) => ({ epochs: run.epochs, dashed: i > 0, values, colour, width });
        const lines = this.groupMeans(run, name).map((values, g) => line(values, this.groupColour(set, g), 1.3));
        if (rows.length > 1 && rows.length <= 8) lines.push(...rows.map((r) => line(this.means(run, name, [r]), ink, 0.6)));
        if (rows.length) lines.push(line(this.means(run, name, rows), ink, 2.2));
        return lines;
      });
      const [{ group, groups }] = this.data.sets, [run] = this.data.runs, means = run[name] ? this.groupMeans(run, name) : [];
      const ends = means.map((values, g) => `${group ? groups[g] : "all images"} ${fixed(values.at(-1))}`).join(", ");
      return this.curve(title, series, ends ? `, in the end ${ends}` : "");
    });
    this.curves.replaceChildren(...figures, this.curveKey());
  }

  /** One quantity over time; a unit of the chart is a pixel, so that its text can be read at any width. */
  curve(title, series, said) {
    const columns = getComputedStyle(this.curves).gridTemplateColumns.split(" ").length;
    const W = Math.max(140, this.curves.clientWidth / columns - 12), H = 104, L = 34, end = Math.max(this.steps.at(-1), 1);
    const values = series.flatMap((s) => s.values).filter(Number.isFinite);
    let [low, high] = values.length ? [Math.min(...values), Math.max(...values)] : [0, 1];
    if (high - low < 1e-3) [low, high] = [low - 0.05, high + 0.05];
    const x = (epoch) => L + ((W - L - 6) * epoch) / end, y = (v) => H - 18 - ((H - 26) * (v - low)) / (high - low);
    const point = (s, t) => `${x(s.epochs[t]).toFixed(1)} ${y(s.values[t]).toFixed(1)}`;
    const known = (s, t) => Number.isFinite(s.values[t]);
    const draw = (s, step) => s.values.map((_, t) => (known(s, t) ? step(t) : "")).join("");
    const paths = series.map((s) => h("path", { fill: "none", stroke: s.colour, "stroke-width": s.width,
      "stroke-dasharray": s.dashed ? "4 3" : null, d: draw(s, (t) => (known(s, t - 1) ? "L" : "M") + point(s, t)) }));
    // A dot at each snapshot: nothing is known of the epochs between them.
    const dots = series.filter((s) => s.width > 1).map((s) => h("path", { stroke: s.colour, "stroke-width": s.width + 1.6,
      "stroke-linecap": "round", d: draw(s, (t) => `M${point(s, t)}h0`) }));
    const upright = (epoch, kind) => h("line", { y1: 4, y2: H - 16, x1: x(epoch), x2: x(epoch), class: kind });
    const line = upright(this.epoch, "now");
    this.cursors.push({ line, x });
    const label = (u, v, text, anchor) => h("text", { x: u, y: v, "text-anchor": anchor }, text);
    const labels = [label(L - 4, y(high) + 4, fixed(high), "end"), label(L - 4, y(low) + 2, fixed(low), "end"),
      label(L, H - 4, "0", "middle"), label(W - 6, H - 4, `epoch ${end}`, "end")];
    const click = (e) => {
      const box = e.currentTarget.getBoundingClientRect();
      const epoch = ((((e.clientX - box.left) / box.width) * W - L) / (W - L - 6)) * end;
      this.goTo(this.steps.reduce((best, step) => (Math.abs(step - epoch) < Math.abs(best - epoch) ? step : best)));
    };
    const attributes = { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${title} over training time${said}`, onclick: click };
    const breaks = [...this.breaks().keys()].map((epoch) => upright(epoch, "warm"));
    const chart = h("svg", attributes, breaks, paths, dots, line, labels);
    return h("figure", {}, h("figcaption", {}, title), chart);
  }

  /** Epochs from which other temperatures hold, and why: losses before and after one do not compare. */
  breaks() {
    return new Map(this.data.runs.flatMap((run) => run.breaks));
  }

  curveKey() {
    const [set] = this.data.sets, [run, other] = this.data.runs, soft = "var(--t-soft)";
    const key = (colour, text, dash) => h("span", {}, h("i", { class: dash ? "dash" : "", style: `border-color:${colour}` }), text);
    const groups = set.group ? set.groups.map((name, g) => key(this.groupColour(set, g), name)) : [key(soft, "all images")];
    const mine = this.looked.row >= 0 ? "this image" : this.selected(0).length ? "selection" : "";
    return h("p", { class: "tase-key" }, groups, mine ? key("var(--t-ink)", mine) : null,
      other ? [key(soft, run.title), key(soft, other.title, true)] : null,
      [...new Set(this.breaks().values())].map((text) => h("span", {}, `┊ ${text}`)),
      h("span", {}, "losses at different τ do not compare"));
  }

  /** Images of the selection, or of what passes the filters; where there is neither, the rarest and the most common. */
  drawGallery() {
    const some = this.gathered(), [first] = this.data.runs;
    const caption = ([s, r]) => `τ ${fixed(this.value(this.data.runs.find((run) => run.set === s), "tau", r))}`;
    const tiles = (pairs) => h("div", { class: "tase-tiles" }, pairs.map(([s, r]) => this.tile(s, r, caption([s, r]))));
    if (!some) {
      const t = this.now(first), m = this.maps[0].m, order = [...Array(m).keys()].map((r) => [0, r]);
      order.sort(([, a], [, b]) => first.headness[t * m + a] - first.headness[t * m + b]);
      const hint = this.maps[0].places ? h("small", {}, " draw round points, or click one, to select") : null;
      this.gallery.replaceChildren(h("h2", {}, "Rarest now, by headness", hint), tiles(order.slice(0, 12)),
        h("h2", {}, "Most common now"), tiles(order.slice(-12).reverse()));
      return;
    }
    const show = () => {
      this.limit += 3 * PAGE;
      this.drawGallery();
    };
    const more = some.length > this.limit ? [button(`show more of ${number(some.length)}`, show)] : [];
    swap(this.gallery, h("h2", {}, this.countText()), tiles(some.slice(0, this.limit)), ...more);
  }

  /** The chain of numbers from the cluster to tau and w, for each run, and the neighbours over time. */
  drawWhy() {
    const { set: s, row } = this.looked, set = this.data.sets[s];
    this.why.hidden = row < 0;
    this.stage.classList.toggle("looked", row >= 0);
    if (row < 0) return this.why.replaceChildren();
    const known = set.label ? [this.classOf(s, row), `${number(set.counts[set.label[row]])} training images`] : [];
    const words = h("p", {}, h("b", {}, this.nameOf(s, row)), known.map((text) => h("span", {}, `, ${text}`)));
    const runs = this.data.runs.filter((run) => run.set === s);
    const chains = runs.map((run) =>
      h("div", { class: "tase-chain" }, runs.length > 1 ? h("h3", {}, run.title) : null, this.chain(run, row))
    );
    const head = h("div", { class: "tase-head" }, this.picture(s, row, 48), h("h2", {}, "Why this τ?"), words);
    swap(this.why, head, h("div", { class: "tase-chains" }, chains), this.nearRows(runs[0], row));
  }

  chain(run, row) {
    const t = this.now(run), k = this.value(run, "cluster", row), m = this.data.sets[run.set].index.length;
    if (k < 0) return h("p", {}, "No clusters yet.");
    const [a, q, tau, weight] = ["headness", "q", "tau", "weight"].map((name) => this.value(run, name, row));
    const all = run.tau.subarray(t * m, (t + 1) * m), same = quantile(all, 1) - quantile(all, 0) < 1e-3;
    const size = run.sizes[t][k], joined = run.joined[t]?.[k], note = run.q_notes[t];
    const steps = [
      ["cluster", String(k), `${number(size)} images`],
      joined ? ["joined group", number(joined), joined > 1.5 * size ? "images: near clusters count together" : "images"] : null,
      ["headness a", fixed(a), `log of ${number(Math.exp(a))} images, its clusters' mean`],
      ["q", fixed(q), note],
      run.trust ? ["trust", fixed(run.trust[t]), `of the run: 0 as balanced data, 1 a clear tail${run.equation?.[3] < 1 ? `; τ and w act with ${run.equation[3]}` : ""}`] : null,
      ["τ", fixed(tau, 3), same ? "the same for all images now" : this.tauText(run, t, tau, q)],
      ["w", fixed(weight, 3), same ? "" : `counts ${weight > 1 ? "more" : "less"} than the mean`],
      ...Object.keys(run.own).map((name) => {
        const label = name in this.labels, known = this.value(run, name, row);
        return [(label ? this.labels : this.quantities)[name], label ? String(known) : fixed(known, 3), "what its method knows besides"];
      }),
    ];
    const item = ([name, value, note]) => h("li", {}, h("span", {}, name), h("b", {}, value), h("small", {}, note));
    return h("ol", {}, steps.filter(Boolean).map(item));
  }

  /** Equation (5) with its numbers, where the run's tau are its results. */
  tauText(run, t, tau, q) {
    if (!run.equation) return "by this method's own rule";
    const [low, high, tau0, strength, since] = run.equation;
    if (run.epochs[t] < since) return "before the run was steered";
    const full = low + (high - low) * q;
    const target = tau0 * (full / tau0) ** strength, sum = `${fixed(low)} + ${fixed(high - low)} · ${fixed(q)}`;
    if (Math.abs(target - tau) >= 0.006) return `on its way to ${fixed(target)}`;
    return strength === 1 ? sum : `${fixed(tau0)} · (${fixed(full)} / ${fixed(tau0)})^${strength}, from ${sum}`;
  }

  /** The nearest images now and at earlier epochs; a dashed line around those that are not near any more. */
  nearRows(run, row) {
    const t = this.now(run), now = this.neighbours(run, row, t);
    if (!now.length) return h("p", {}, "No neighbours: the features are not kept.");
    const tile = (r, u) =>
      button(this.picture(run.set, r, 31), () => this.look(run.set, r), {
        class: u === t || now.includes(r) ? "tase-tile" : "tase-tile gone", title: this.describe(run, r),
      });
    const where = this.data.runs.length > 1 ? ` in ${run.title}` : "";
    const line = (u) => h("div", {}, h("small", {}, u === t ? `nearest now${where}` : `at epoch ${run.epochs[u]}`),
      h("div", { class: "tase-tiles" }, this.neighbours(run, row, u).map((r) => tile(r, u))));
    const lines = [...new Set([t, Math.floor(t / 2), 0])].map(line);
    const like = button("select it and its neighbours", () => this.select(run.set, [row, ...now], "replace", row));
    return h("div", { class: "tase-near" }, lines, like);
  }

  /** Save the selection, of both sets of images, or all that is shown of the first, at the epoch shown as CSV. */
  saveCSV() {
    const { runs, sets } = this.data, rows = this.gathered() ?? this.visible().map((r) => [0, r]);
    const names = Object.keys({ ...this.labels, ...this.quantities }), of = new Set(rows.map(([s]) => s));
    const columns = runs.filter((run) => of.has(run.set)).flatMap((run) => names.filter((name) => run[name]).map((name) => [run, name]));
    const alike = new Set(runs.map((run) => run.name)).size < runs.length;
    const called = (run) => (alike ? `${run.name} (${runs.indexOf(run) + 1})` : run.name);
    const title = ([run, name]) => (runs.length > 1 ? `${called(run)}:${name}` : name);
    const text = ([run, name], s, r) => {
      const value = run.set === s ? this.value(run, name, r) : NaN;
      return Number.isNaN(value) ? "" : name in this.labels ? value : fixed(value, 4);
    };
    const cell = (value) => (/[",\n\r]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : value);
    const lines = rows.map(([s, r]) => [
      sets[s].index[r], sets[s].paths ? sets[s].paths[r] : "", sets[s].label ? sets[s].classes[sets[s].label[r]] : "",
      sets[s].group ? sets[s].groups[sets[s].group[r]] : "", ...columns.map((column) => text(column, s, r)),
    ]);
    const table = [["image", "path", "class", "group", ...columns.map(title)], ...lines];
    const file = new Blob([table.map((line) => `${line.map(cell).join(",")}\n`).join("")], { type: "text/csv" });
    const href = URL.createObjectURL(file);
    const link = h("a", { href, download: `${this.data.runs[0].name}-epoch-${wholeEpoch(this.epoch)}.csv`, hidden: true });
    this.root.append(link); // some frames save only what a link on the page names
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(href), 60000); // a slow disk may still read it
    this.say(`${number(rows.length)} rows saved as CSV`);
  }
}

// ------------------------------------------------------------------------------------------------ file and notebook

/** Take on the colours of a notebook that shows this page in a frame. */
function followNotebook() {
  const above = window.frameElement?.ownerDocument.body, names = ["--jp-layout-color0", "--jp-ui-font-color0"];
  const take = () => {
    for (const name of names) document.documentElement.style.setProperty(name, getComputedStyle(above).getPropertyValue(name));
  };
  if (!above || !getComputedStyle(above).getPropertyValue(names[0])) return;
  take();
  new MutationObserver(take).observe(above, { attributes: true });
}

/** Called by the HTML file: the payload is gzip in base64. */
async function openPage(el, text) {
  followNotebook();
  try {
    const coded = atob(text.trim()), bytes = new Uint8Array(coded.length);
    for (let i = 0; i < coded.length; i++) bytes[i] = coded.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    window.tase = new Explorer(el, unpack(await new Response(stream).arrayBuffer()), { report: true });
  } catch (error) {
    el.replaceChildren(h("p", {}, `This page cannot be shown by this browser: ${error.message}`));
    throw error;
  }
}

/** Called by anywidget: the selection and the epoch go to Python and come back from there. */
function render({ model, el }) {
  let explorer = null;
  const numbers = () =>
    explorer.data.sets.map((set, s) => explorer.selected(s).map((r) => set.index[r]));
  const changed = (epoch = explorer.epoch) => {
    model.set("selected", numbers());
    model.set("epoch", wholeEpoch(epoch));
    model.save_changes();
  };
  const open = () => {
    const view = model.get("payload"), kept = explorer?.state() ?? { epoch: model.get("epoch") };
    if (!view.byteLength) return;
    explorer?.close();
    explorer = el.tase = new Explorer(el, unpack(view.buffer, view.byteOffset), { kept, changed });
    mark();
    if (wholeEpoch(explorer.epoch) !== model.get("epoch")) changed(); // it went on to the end of newer data
  };
  const mark = () => {
    if (!explorer || JSON.stringify(model.get("selected")) === JSON.stringify(numbers())) return;
    explorer.data.sets.forEach(({ index }, s) => {
      const wanted = new Set(model.get("selected")[s]);
      index.forEach((image, r) => (explorer.chosen[s][r] = wanted.has(image) ? 1 : 0));
    });
    explorer.rows = null;
    explorer.refresh();
    explorer.say(explorer.countText());
  };
  const move = () => {
    const epoch = model.get("epoch");
    if (explorer && wholeEpoch(explorer.motion?.to ?? explorer.epoch) !== epoch) explorer.goTo(epoch);
  };
  model.on("change:payload", open);
  model.on("change:selected", mark);
  model.on("change:epoch", move);
  open();
  return () => {
    explorer?.close();
    for (const [name, listener] of [["payload", open], ["selected", mark], ["epoch", move]]) model.off(`change:${name}`, listener);
  };
}

export default { render };
