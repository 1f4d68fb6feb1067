"use strict";
// Draws the dependency graph, one group at a time.

const axisName = (n) => `${n.parameter}[${n.axes.join(",")}]${n.use ? ` of ${n.use}` : ""}`;
const frozen = (n) => (n.frozen ? `${n.frozen.reason} (${n.frozen.op_type} ${n.frozen.node})` : "");

const groups = d3.rollups(data.nodes, (nodes) => {
  const axes = nodes.filter((n) => n.kind === "axis");
  return { nodes, axes, units: d3.max(axes, (n) => n.units), free: d3.max(axes, (n) => n.free) };
}, (n) => n.group).map(([name, found]) => ({ name, ...found }))
  .filter((g) => g.free || g.axes.length > 1)
  .sort((a, b) => (b.free > 0) - (a.free > 0) || b.axes.length - a.axes.length);

const free = groups.filter((g) => g.free).length;
page.append(el("h1", {}, data.title), el("p", { class: "soft" },
  `${free} ${free === 1 ? "group" : "groups"}${groups.length > free ? `, ${groups.length - free} more that ${groups.length - free === 1 ? "stays" : "stay"}` : ""}. ` +
  "Circles: axes of parameters, grey where they stay; the table below says why. Squares: operators that force the axes " +
  "beside them to be cut together."));
const search = el("input", { type: "search", placeholder: "Group or parameter", "aria-label": "Find a group" });
const choice = el("select", { "aria-label": "Group" });
page.append(el("div", { class: "tools" }, search, choice));
const svg = d3.create("svg").attr("role", "img").attr("aria-label", "The axes of one group and the operators that couple them")
  .style("font", "12px system-ui, sans-serif");
const axes = el("div");
let drawn = null;  // the group that is shown
page.append(picture((width) => { draw(width); return svg.node(); }), axes);

function fill() {
  const asked = search.value.toLowerCase();
  const found = groups.filter((g) => g.name.toLowerCase().includes(asked) ||
    g.axes.some((n) => axisName(n).toLowerCase().includes(asked)));
  choice.replaceChildren(...found.map((g) =>
    el("option", { value: g.name }, `${clip(g.name, 60)} - ${g.axes.length} axes, ${g.free} of ${g.units} units`)));
  if (found.length) show(found[0]);
}

function show(group) {
  drawn = group;
  axes.replaceChildren(table(group.axes, [["axis", axisName], ["shape", (n) => n.shape.join(" x ")], ["units", (n) => n.units, whole],
    ["may go", (n) => n.free, whole], ["why others stay", frozen]], "axes"));
  draw(svg.node().parentNode?.clientWidth ?? 0);
  fit();
}

/** Where the label of each mark goes: beside it, below or above, the first place that is free, inside the picture. */
function placed(marks, edge) {
  const taken = marks.map(({ x, y }) => [x - 7, y - 7, x + 7, y + 7]);
  return marks.map(({ x, y, text }) => {
    const wide = 6.9 * text.length, room = (dx, dy) => [x + dx, y + dy - 6, x + dx + wide, y + dy + 6];
    const ways = [["start", 9, 0, 9], ["end", -9, 0, -9 - wide], ["middle", 0, 15, -wide / 2], ["middle", 0, -15, -wide / 2],
      ["start", 6, 13, 6], ["start", 6, -13, 6], ["end", -6, 13, -6 - wide], ["end", -6, -13, -6 - wide]];
    const clashes = ([, , dy, left]) => {
      const [a, b, c, d] = room(left, dy);
      return (a < 0 || c > edge ? 3 : 0) + d3.sum(taken, ([e, f, g, h]) => (a < g && e < c && b < h && f < d ? 1 : 0));
    };
    const [anchor, dx, dy, left] = ways[d3.minIndex(ways, clashes)];
    taken.push(room(left, dy));
    return { anchor, dx, dy, text };
  });
}

function draw(width) {
  if (!drawn || !width) return;
  const group = drawn, height = width < 640 ? 460 : 620, sides = width < 640 ? 130 : 240;
  svg.attr("width", width).attr("height", height);
  const nodes = group.nodes.map((n) => ({ ...n })), ids = new Set(nodes.map((n) => n.id));
  const links = data.edges.filter((e) => ids.has(e.source) && ids.has(e.target)).map((e) => ({ ...e }));
  const few = nodes.length <= width / 12;
  d3.forceSimulation(nodes).force("link", d3.forceLink(links).id((n) => n.id).distance(few ? 60 : 25))
    .force("collide", d3.forceCollide(few ? 26 : 8)).force("charge", d3.forceManyBody().strength(few ? -260 : -60)).force("x", d3.forceX().strength(0.04))
    .force("y", d3.forceY().strength(0.07)).stop().tick(nodes.length <= 1500 ? 300 : 60);
  const [left, right] = d3.extent(nodes, (n) => n.x), [top, bottom] = d3.extent(nodes, (n) => n.y);
  const across = Math.min((width - sides) / (right - left || 1), 1.6), down = Math.min((height - 60) / (bottom - top || 1), 1.6);
  const x = (n) => width / 2 - (few ? sides / 3 : 0) + (n.x - (left + right) / 2) * across, y = (n) => height / 2 + (n.y - (top + bottom) / 2) * down;
  svg.selectAll("*").remove();
  const all = svg.append("g");
  svg.call(d3.zoom().scaleExtent([0.3, 12]).on("zoom", ({ transform }) => all.attr("transform", transform)));
  all.selectAll("line").data(links).join("line").attr("stroke", "var(--soft)").attr("stroke-opacity", 0.7)
    .attr("x1", (e) => x(e.source)).attr("y1", (e) => y(e.source)).attr("x2", (e) => x(e.target)).attr("y2", (e) => y(e.target));
  const marks = all.selectAll("g").data(nodes).join("g").attr("transform", (n) => `translate(${x(n)},${y(n)})`);
  const operators = marks.filter((n) => n.kind === "coupling"), circles = marks.filter((n) => n.kind === "axis");
  operators.append("rect").attr("x", -5).attr("y", -5).attr("width", 10).attr("height", 10).attr("fill", "var(--soft)");
  circles.append("circle").attr("r", 6).attr("fill", (n) => (n.free ? "var(--accent)" : "var(--pale)"));
  marks.append("title").text((n) => (n.kind === "axis" ? `${axisName(n)} ${frozen(n)}` : `${n.op_type} ${n.node}`));
  if (few) {
    const places = placed(nodes.map((n) => ({ x: x(n), y: y(n), text: n.kind === "axis" ? clip(axisName(n), width < 640 ? 18 : 34) : width < 640 ? "" : n.op_type })), width);
    marks.append("text").attr("x", (n, i) => places[i].dx).attr("y", (n, i) => places[i].dy + 4).text((n, i) => places[i].text)
      .attr("text-anchor", (n, i) => places[i].anchor).attr("paint-order", "stroke").attr("stroke", "var(--paper)").attr("stroke-width", 3)
      .attr("fill", (n) => (n.kind === "axis" ? "var(--ink)" : "var(--soft)"));
  }
}

search.addEventListener("input", fill);
choice.addEventListener("change", () => show(groups.find((g) => g.name === choice.value)));
fill();
fit();
