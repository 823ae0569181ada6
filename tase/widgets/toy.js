// Notebook 00's toy as a page, after front.js: points on a circle, moved by the contrastive loss alone.

const COUNTS = [60, 20, 6]; // points of the head, mid and tail class
const NAMES = ["head", "mid", "tail"];
const ROUNDS = 300, PER_FRAME = 12; // gradient steps, and how many between two pictures
const NOISE = 0.1, RATE = 0.02;

/** Numbers from a normal distribution, the same for the same seed (mulberry32, Box-Muller). */
function normals(seed) {
  const uniform = () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  return () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
}

/** Softmax over the others of each anchor, p_uv = exp(s_uv / tau_u) / sum_{k != u} exp(s_uk / tau_u): [m * m], a row each. */
function softmax(angle, tau) {
  const m = angle.length, n = tau.length, p = new Float64Array(m * m);
  for (let u = 0; u < m; u++) {
    let sum = 0;
    for (let v = 0; v < m; v++) if (v !== u) sum += p[u * m + v] = Math.exp((Math.cos(angle[u] - angle[v]) - 1) / tau[u % n]);
    for (let v = 0; v < m; v++) p[u * m + v] /= sum;
  }
  return p;
}

class Toy {
  constructor(el) {
    this.group = COUNTS.flatMap((count, g) => new Array(count).fill(g));
    this.n = this.group.length;
    const size = this.group.map((g) => Math.log(COUNTS[g])), mean = size.reduce((x, y) => x + y) / this.n;
    const [high, , low] = COUNTS.map(Math.log);
    this.q = size.map((a) => (a - low) / (high - low)); // 1 head, 0 tail
    this.headness = size.map((a) => a - mean);
    Object.assign(this, { el, seed: 1, anchor: this.group.indexOf(2), values: { tail: 0.1, head: 0.5, gamma: 0.5 }, scaled: true });
    this.still = matchMedia("(prefers-reduced-motion: reduce)");
    this.build();
    this.shuffle(1);
  }

  // ---- the loss

  /** Temperatures and weights of equations (5) and (6), where headness is known, not clipped; the factor of the loss. */
  settings() {
    const { tail, head, gamma } = this.values;
    const tau = this.q.map((q) => tail + (head - tail) * q);
    return { tau, weight: this.headness.map((a) => Math.exp(-gamma * a)), scale: tau.map((t) => (this.scaled ? t / 0.2 : 1)) };
  }

  /** Angles [2 n] of two noisy views of every point. */
  views(angle, random) {
    return [...angle, ...angle].map((x) => x + NOISE * random());
  }

  /** Share of each class in the push on negatives, the sum over its anchors of (w / sum w) c (1 - p_up) / tau. */
  push(angle) {
    const { tau, weight, scale } = this.settings(), { n, group } = this, p = softmax(angle, tau), sums = [0, 0, 0];
    for (let u = 0; u < 2 * n; u++) {
      const i = u % n;
      sums[group[i]] += ((weight[i] * scale[i]) / tau[i]) * (1 - p[u * 2 * n + ((u + n) % (2 * n))]);
    }
    const total = sums.reduce((x, y) => x + y);
    return sums.map((x) => x / total);
  }

  /** Derivative [n] of equation (2) by the points' angles, for two views of them. */
  gradient(angle) {
    const { tau, weight, scale } = this.settings(), { n } = this, m = 2 * n, p = softmax(angle, tau);
    const total = 2 * weight.reduce((x, y) => x + y), out = new Float64Array(n);
    for (let u = 0; u < m; u++) {
      const i = u % n, share = (weight[i] * scale[i]) / total / tau[i];
      for (let v = 0; v < m; v++) {
        const pull = share * (p[u * m + v] - (v === (u + n) % m ? 1 : 0)) * Math.sin(angle[u] - angle[v]);
        out[i] -= pull;
        out[v % n] += pull;
      }
    }
    return out;
  }

  step() {
    const slope = this.gradient(this.views(this.angle, this.random));
    this.angle = this.angle.map((x, i) => x - RATE * this.n * slope[i]);
    this.round++;
  }

  /** Share of the circle that lies nearest to each class's points. */
  arcs() {
    const turn = 2 * Math.PI, at = this.angle.map((x) => ((x % turn) + turn) % turn), out = [0, 0, 0];
    const order = [...at.keys()].sort((a, b) => at[a] - at[b]);
    order.forEach((i, k) => {
      const before = at[order.at(k - 1)] - (k ? 0 : turn), after = at[order[(k + 1) % this.n]] + (k + 1 < this.n ? 0 : turn);
      out[this.group[i]] += (after - before) / 2 / turn;
    });
    return out;
  }

  // ---- the page

  build() {
    const slider = (key, label, min, max, step) => {
      const text = h("output", {}, fixed(this.values[key]));
      const change = () => {
        this.values[key] = Number(input.value);
        text.textContent = fixed(this.values[key]);
        this.restart();
      };
      const input = h("input", { type: "range", min, max, step, value: this.values[key], "aria-label": label, oninput: change });
      return h("label", {}, h("span", {}, label), input, text);
    };
    const scaled = h("input", { type: "checkbox", checked: this.scaled, onchange: () => {
      this.scaled = scaled.checked;
      this.restart();
    } });
    const anchors = h("select", { "aria-label": "anchor", onchange: () => {
      this.anchor = this.group.indexOf(anchors.selectedIndex);
      this.draw();
    } }, NAMES.map((name, g) => h("option", { selected: g === 2 }, `of the ${name}`)));
    this.circle = h("svg", { viewBox: "-1.2 -1.2 2.4 2.4", role: "img" });
    this.bars = h("div", { class: "tase-bars" });
    this.said = h("p", { role: "status", "aria-live": "polite" });
    const controls = h("div", { class: "tase-controls" }, slider("head", "τ of the head", 0.05, 1, 0.01),
      slider("tail", "τ of the tail", 0.05, 1, 0.01), slider("gamma", "γ of the weight", 0, 1.5, 0.05),
      h("label", {}, scaled, h("span", {}, "take out the factor 1/τ: each loss times τ / 0.2")),
      h("label", {}, h("span", {}, "anchor"), anchors),
      button("other points", () => this.shuffle(this.seed + 1)), button("run again", () => this.restart()));
    const head = h("header", {}, h("h1", {}, "What a temperature and a weight do"),
      h("p", {}, `${COUNTS.join(", ")} points of a head, a mid and a tail class, moved by the contrastive loss alone`));
    this.root = h("div", { class: "tase tase-toy" }, head, h("div", {}, this.circle, h("section", {}, controls, this.bars, this.said)));
    this.el.replaceChildren(this.root);
    const theme = () => {
      const [r, g, b] = getComputedStyle(this.root).backgroundColor.match(/[\d.]+/g).map(Number);
      this.root.classList.toggle("dark", 0.2126 * r + 0.7152 * g + 0.0722 * b < 110);
      if (this.angle) this.draw();
    };
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", theme);
    new MutationObserver(theme).observe(document.documentElement, { attributes: true });
    theme();
  }

  /** Points around the middles of their classes, drawn by a seed. */
  shuffle(seed) {
    const random = normals(seed), middle = [100, 220, 340];
    this.seed = seed;
    this.begin = this.group.map((g) => (middle[g] * Math.PI) / 180 + 0.35 * random());
    this.restart();
  }

  restart() {
    Object.assign(this, { angle: [...this.begin], round: 0, random: normals(this.seed + 1000) });
    this.first = this.push(this.views(this.begin, normals(this.seed + 2000)));
    if (this.still.matches) while (this.round < ROUNDS) this.step();
    this.frame ??= requestAnimationFrame(() => this.tick());
  }

  tick() {
    this.frame = null;
    this.draw();
    for (let k = 0; k < PER_FRAME && this.round < ROUNDS; k++) {
      this.step();
      this.frame ??= requestAnimationFrame(() => this.tick());
    }
  }

  draw() {
    const { angle, group, anchor, n } = this, { tau } = this.settings(), place = (x) => [Math.cos(x), -Math.sin(x)];
    const s = angle.map((x, v) => (v === anchor ? 0 : Math.exp((Math.cos(angle[anchor] - x) - 1) / tau[anchor])));
    const sum = s.reduce((x, y) => x + y), p = s.map((x) => x / sum), colours = GROUP_COLOURS[this.root.matches(".dark") ? "dark" : "light"];
    const seen = Math.exp(-p.reduce((total, x) => total + (x > 0 ? x * Math.log(x) : 0), 0));
    const [x1, y1] = place(angle[anchor]);
    const lines = p.map((x, v) => [x, place(angle[v])]).filter(([x]) => x > 1e-4).map(([x, [x2, y2]]) =>
      h("line", { x1, y1, x2, y2, "stroke-width": 0.06 * Math.sqrt(x) }));
    const points = angle.map((x, i) => {
      const [cx, cy] = place(x), look = () => Object.assign(this, { anchor: i }).draw();
      return h("circle", { cx, cy, r: i === anchor ? 0.045 : 0.026, fill: colours[group[i]], class: i === anchor ? "anchor" : "", onclick: look });
    });
    this.circle.replaceChildren(h("circle", { r: 1, class: "ring" }), ...lines, ...points);
    const arcs = this.arcs(), percent = (x) => `${Math.round(100 * x)} %`;
    const rows = { "share of the points": COUNTS.map((c) => c / n), "share of the push at the start": this.first, "share of the circle now": arcs };
    this.bars.replaceChildren(...Object.entries(rows).map(([title, shares]) => h("figure", {}, h("figcaption", {}, title),
      shares.map((x, g) => h("div", {}, h("span", {}, NAMES[g]), h("i", { style: `width:${62 * x}%;background:${colours[g]}` }), percent(x))))));
    this.circle.setAttribute("aria-label", `Points on a circle: ${NAMES.map((name, g) => `${name} ${percent(arcs[g])}`).join(", ")}`);
    this.said.textContent = `At τ = ${fixed(tau[anchor])} the ringed point of the ${NAMES[group[anchor]]} sees ${seen.toFixed(1)} of ${n - 1} ` +
      "others: a line is as thick as its share of the push. Click a point to make it the anchor. A weight changes how much of " +
      `all push a class has; a temperature how each anchor shares its own out${this.scaled ? "." : ", and by the factor 1/τ how strong it is."}`;
  }
}
