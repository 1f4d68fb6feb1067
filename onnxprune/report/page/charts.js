"use strict";
// Charts: what is left of every group, what cuts are expected to cost, the fronts of a sweep.

const ACCENT = "var(--accent)", PALE = "var(--pale)", SOFT = "var(--soft)";
const COLOURS = d3.range(8).map((i) => `var(--series-${i})`);
const short = d3.format(".3~s");
const amount = (n) => short(n).replace(/([kMGT])$/, " $1");

/** Names of things, with what tells those apart that bear the same one: `more` of it, and a number where that is the
    same, too. */
function apart(things, name, more) {
  const told = (label) => d3.rollup(things, (same) => same.length, label);
  const names = told(name), fuller = (thing) => (names.get(name(thing)) > 1 ? `${name(thing)} (${more(thing)})` : name(thing));
  const all = told(fuller), seen = new Map();
  return things.map((thing) => {
    const label = fuller(thing), k = (seen.get(label) ?? 0) + 1;
    seen.set(label, k);
    return all.get(label) > 1 ? `${label} #${k}` : label;
  });
}

const key = (...entries) => el("div", { class: "key" }, ...entries.map(([colour, text]) => {
  const square = el("i");
  square.style.background = colour;
  return el("span", {}, square, text);
}));

/** Text in lines of at most so many letters, which end where a name may break. */
function folded(text, most) {
  const lines = [""], anywhere = new RegExp(`(?<=^(?:.{${most}})+)`);
  const shorter = (parts, at) => parts.flatMap((part) => (part.length > most ? part.split(at) : [part]));
  for (const part of [JOINT, WORDS, anywhere].reduce(shorter, text.split(/(?<= )/))) {
    if ((lines.at(-1) + part).trimEnd().length > most) lines.push("");
    lines[lines.length - 1] += part;
  }
  return lines.join("\n");
}

/** A chart of the page's own look: `options(tip)`, where `tip(lines)` is how a tip is drawn, no wider than the chart. */
function chart(width, options) {
  const letters = Math.floor(Math.min(480, width / 2 - 40) / 7);
  const tip = (lines) => ({ fill: "var(--paper)", stroke: PALE, lineHeight: 1.4, lineWidth: Infinity, textPadding: 10,
    title: (point) => lines(point).map((line) => folded(line, letters)).join("\n") });
  return Plot.plot({ style: { background: "none", fontSize: "12px" }, width, ...options(tip) });
}

/** What is left of every group: a name, a bar, and the numbers. */
function widths(groups) {
  const most = d3.max(groups, (group) => group.units);
  const names = apart(groups, (g) => g.name, (g) => `${whole(g.units)} units`);
  return el("div", { class: groups.length > 24 ? "bars scroll" : "bars" }, ...groups.map((group, i) => el(
    "div", { title: `${names[i]}: ${whole(group.kept)} of ${whole(group.units)} units stay` }, el("span", { class: "name" }, names[i]),
    bar(group.units, group.kept, most), el("span", { class: "count" }, `${whole(group.kept)} of ${whole(group.units)}`))));
}

/** How wide something was and is, as a share of the widest. */
function bar(before, after, most) {
  const kept = el("i"), made = el("span", { class: "bar" }, kept);
  made.style.width = `${Math.max(0.5, Math.min(100, (100 * before) / most))}%`;
  kept.style.width = `${Math.min(100, (100 * after) / (before || 1))}%`;
  return el("span", { class: "track" }, made);
}

/** The error that a cut of one set of units is expected to cost, at any share of it. */
const cost = (curve, loss) => loss * (curve.factor ?? 1);
function costAt(curve, position) {
  const low = Math.floor(position), high = Math.ceil(position), a = curve.losses[low], b = curve.losses[high];
  return a == null || b == null ? null : cost(curve, a + (b - a) * (position - low));
}

function curves(all) {
  const names = apart(all, (curve) => curve.group, (curve) => `${whole(curve.units)} units`);
  const points = all.flatMap((curve, i) => curve.losses.map((loss, k) => (
    { i, curve, share: k / (curve.losses.length - 1), cost: loss == null ? null : cost(curve, loss) }
  ))).filter((point) => point.cost > 0);
  const chosen = all.map((curve, i) => ({ i, curve, share: curve.share, cost: costAt(curve, curve.share * (curve.losses.length - 1)) }))
    .filter((point) => point.cost > 0);
  const [least, most] = d3.extent(points, (point) => Math.log10(point.cost));
  const [bottom, top] = [Math.floor(least), Math.max(Math.ceil(most), Math.floor(least) + 1)];
  const decades = d3.range(bottom, top + 1, Math.ceil((top - bottom) / 10)).map((power) => 10 ** power);
  const few = all.length <= COLOURS.length, colour = (i) => (few ? COLOURS[i] : SOFT);
  const drawn = [...new Set(points.map((point) => point.i))];
  const told = (p) => [names[p.i], `${hundredth(p.share)} of ${whole(p.curve.units)} units gone: error ${exact(p.cost)}`,
    `removed here: ${hundredth(p.curve.share)}`,
    p.curve.factor == null ? "factor not measured" : `factor ${exact(p.curve.factor)}`];
  const choice = el("select", { "aria-label": "Show one set of units" }, el("option", { value: "" }, "all sets of units"),
    ...drawn.map((i) => el("option", { value: i }, names[i])));
  let plot;
  const lit = (i) => plot.querySelectorAll(".curve path").forEach((path, k) => path.classList.toggle("on", i === drawn[k]));
  choice.addEventListener("change", () => lit(choice.value === "" ? null : Number(choice.value)));
  return [few ? null : el("div", { class: "tools" }, choice), picture((width) => {
    plot = chart(width, (tip) => ({
      height: width < 600 ? 340 : 420, marginLeft: 56, marginRight: 16, marginTop: 28, marginBottom: 44, insetTop: 12,
      x: { label: "share of the units that goes (%)", tickFormat: "%", ticks: width < 600 ? 5 : 10, tickSize: 0, domain: [0, 1] },
      y: { type: "log", label: "expected error (share of the outputs' variance)", domain: [10 ** bottom, 10 ** top] },
      marks: [
        Plot.gridY({ ticks: decades, strokeOpacity: 0.12 }),
        Plot.axisY({ ticks: decades, tickSize: 0, tickFormat: "~g" }),
        Plot.line(points, { x: "share", y: "cost", z: "i", stroke: (p) => colour(p.i), strokeOpacity: few ? 1 : Math.max(0.12, 12 / all.length / 2), strokeWidth: 1.3, className: "curve" }),
        Plot.dot(chosen, { x: "share", y: "cost", r: 4.5, fill: ACCENT, stroke: "var(--paper)" }),
        Plot.tip(points, Plot.pointer({ x: "share", y: "cost", ...tip(told) })),
      ],
    }));
    plot.addEventListener("input", () => lit(plot.value?.i));
    return plot;
  }), key(...(few ? drawn.map((i) => [colour(i), names[i]]) : [[SOFT, "one curve for each set of units that go together"]]),
    [ACCENT, "what was chosen"])];
}

/** How a cost of a sweep is called, what it is counted in, and by how much it is multiplied for that. */
const COSTS = { macs: ["MACs", "of one sample", 1], parameters: ["parameters", "number", 1], latency: ["latency", "ms", 1000] };

function front(points, names, field, dense, metric) {
  const [title, unit, times] = COSTS[field], { write, label, percent } = metric;
  const chosen = d3.sort(points.filter((point) => names.includes(point.name)), (point) => point[field]);
  const others = points.filter((point) => !names.includes(point.name));
  const criteria = [...new Set(points.map((point) => point.criterion))];
  const colour = (point) => COLOURS[criteria.indexOf(point.criterion) % COLOURS.length];
  const told = (p) => [p.ratio ? `${p.criterion}, ratio ${exact(p.ratio)}` : "as it was", `${data.metric} ${write(p.metric)}`,
    `${amount(times * p[field])} ${field === "latency" ? "ms" : title}`];
  const ends = dense[field] == null ? [] : [dense], place = { x: (point) => times * point[field], y: "metric" };
  return el("div", {}, picture((width) => chart(width, (tip) => ({
    height: 350, marginLeft: 52, marginRight: 24, marginTop: 28, marginBottom: 44, insetTop: 12, inset: 6,
    x: { label: `${title} (${unit})`, tickFormat: amount, ticks: 5, tickSize: 0, nice: true },
    y: { label, percent, tickFormat: exact, tickSize: 0, ticks: 6, grid: true, nice: true },
    marks: [
      Plot.line([...chosen, ...ends], { ...place, stroke: PALE, strokeWidth: 5, curve: "step-after" }),
      Plot.dot(others, { ...place, stroke: colour, r: 4, strokeWidth: 1.5 }),
      Plot.dot(chosen, { ...place, fill: colour, r: 5, stroke: "var(--paper)" }),
      Plot.dot(ends, { ...place, fill: "var(--ink)", r: 5 }),
      Plot.text(ends, { ...place, text: () => "as it was", dy: -13, textAnchor: "end", dx: 6, fill: "var(--ink)" }),
      Plot.text(chosen.length > 12 ? [] : chosen, { ...place, text: (p) => exact(p.ratio), dx: 7, dy: 11, textAnchor: "start", fill: SOFT }),
      Plot.tip([...points, ...ends], Plot.pointer({ ...place, ...tip(told) })),
    ],
  }))), key(...criteria.map((name, i) => [COLOURS[i % COLOURS.length], name])));
}
