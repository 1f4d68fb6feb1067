"use strict";
// The graph of the model as a picture: a row for every layer, in the order of the model, with its width before and
// after; lines on the left are what flows between. A row that is chosen says what it belongs to and why it stays.

/** By row, what the picture has there: the lane of its layer, the lanes that pass it, those that come in, and all that
    go on below it. A layer keeps its lane until the last row that reads it, as registers are given to values. */
function lanes(layers) {
  const last = layers.map((_, i) => i), lane = [], holds = [];  // holds: by lane, the layer that has it
  layers.forEach((layer, i) => layer.sources.forEach((source) => { last[source] = i; }));
  const rows = layers.map((layer, i) => {
    const ending = layer.sources.filter((source) => last[source] === i).map((source) => lane[source]);
    const free = d3.range(holds.length + 1).find((k) => holds[k] === undefined);
    lane[i] = ending.length ? d3.min(ending) : free;
    const incoming = layer.sources.map((source) => lane[source]);
    ending.forEach((k) => { holds[k] = undefined; });
    const passing = d3.range(holds.length).filter((k) => holds[k] !== undefined);
    holds[lane[i]] = last[i] > i ? i : undefined;
    return { lane: lane[i], incoming, passing, below: d3.range(holds.length).filter((k) => holds[k] !== undefined) };
  });
  return { rows, count: holds.length };
}

const size = (shape) => shape.join(" x ") || "1";

/** Names side by side, of which none is broken where it fits a line of its own; at most so many. */
function listed(names, most = 8) {
  const shown = names.slice(0, most).map((name, i) => el("span", { class: "item" }, i < names.length - 1 ? `${name}, ` : name));
  return el("span", {}, ...shown, names.length > most ? `and ${names.length - most} more` : null);
}

/** What a layer says of itself when it is chosen. */
function about(layer, all) {
  const group = data.groups.find((found) => found.name === layer.group);
  const others = all.filter((other) => other !== layer && layer.group && other.group === layer.group);
  const stays = d3.rollups(data.frozen.filter((f) => Object.hasOwn(layer.shapes, f.parameter)), (found) => found.map((f) => `${f.parameter}[${f.axis}]`),
    (f) => `${f.reason} (${f.op_type} ${f.node})`);
  const [was, is] = layer.macs;
  return facts([
    ["Operator", `${layer.op_type} ${layer.node}`],
    ["Channels", layer.width && (layer.width[0] === layer.width[1] ? `all ${whole(layer.width[0])} stay` : `${whole(layer.width[1])} of ${whole(layer.width[0])} stay`)],
    ["Group", group && `${group.name}: ${whole(group.kept)} of ${whole(group.units)} units stay`],
    ["Cut together with", others.length ? listed(others.map((other) => other.node)) : null],
    ["MACs", was ? `${whole(is)} of ${whole(was)}` : null],
    ...Object.entries(layer.shapes).map(([name, [before, after]]) => ["Weight", `${name}: ${size(before)}${String(before) === String(after) ? ", as it was" : ` → ${size(after)}`}`]),
    ["Stays", group?.crosses_norm && group.kept === group.units && data.options.residual !== "all" ? "it crosses a normalisation over its own axis: --residual lets it go" : null],
    ...stays.map(([why, names]) => ["Stays", `${names.join(", ")}: ${why}`]),
    ["Reads", layer.sources.length ? listed(layer.sources.map((source) => all[source].node)) : null],
  ]);
}

/** Lines in a row of any height: from its top (0) over the layer (50) to its end (100). */
function flow(width, paths) {
  return d3.create("svg").attr("viewBox", `0 0 ${width} 100`).attr("preserveAspectRatio", "none").attr("aria-hidden", "true").attr("class", "flow")
    .style("width", `${width}px`).call((svg) => svg.append("path").attr("d", paths.join(""))).node();
}

function layerGraph(layers) {
  const { rows: places, count } = lanes(layers), most = d3.max(layers.filter((layer) => layer.group), (layer) => layer.width[0]) ?? 1;
  const gap = Math.max(3, Math.min(14, 120 / count)), width = (count + 0.5) * gap + 6, x = (k) => (k + 0.5) * gap + 1;
  const rows = layers.map(row), frame = el("div", { class: "layers scroll" }, ...rows);
  const search = el("input", { type: "search", placeholder: "Find a layer", "aria-label": "Find a layer" }), found = el("span");
  frame.style.setProperty("--lanes", `${width}px`);

  function row(layer, i) {
    const [before, after] = layer.width ?? [], { lane, incoming, passing, below } = places[i];
    const dot = el("i", { class: before === after ? "dot" : "dot changed" });
    dot.style.left = `${x(lane)}px`;
    const button = el("button", { type: "button", "aria-expanded": "false" },
      flow(width, [...passing.map((k) => `M${x(k)},0V100`), ...incoming.map((k) => `M${x(k)},0C${x(k)},50 ${x(k)},50 ${x(lane)},50`),
        below.includes(lane) ? `M${x(lane)},50V100` : ""]), dot,
      el("span", { class: "op" }, layer.op_type), el("span", { class: "name" }, layer.node),
      layer.width ? bar(before, after, most) : el("span"),
      el("span", { class: "count" }, !layer.width ? "" : before === after ? whole(before) : `${whole(before)} → ${whole(after)}`));
    const made = el("div", { class: "layer" }, button);
    button.addEventListener("click", () => choose(i));
    return made;
  }
  function choose(i) {
    const open = rows[i].firstChild.getAttribute("aria-expanded") === "true", { group } = layers[i];
    rows.forEach((made, k) => {
      made.firstChild.setAttribute("aria-expanded", String(k === i && !open));
      made.querySelector(".about")?.remove();
      made.classList.toggle("same", !open && group !== "" && layers[k].group === group);
    });
    if (!open) rows[i].append(el("div", { class: "about" }, flow(width, places[i].below.map((k) => `M${x(k)},0V100`)), about(layers[i], layers)));
  }
  const counted = data.layer_count > layers.length ? `the first ${whole(layers.length)} of ${whole(data.layer_count)} layers` : `${whole(layers.length)} layers`;
  search.addEventListener("input", () => {
    const wanted = search.value.trim().toLowerCase();
    const fits = rows.filter((made, i) => {
      const names = [layers[i].node, layers[i].op_type, layers[i].group, ...Object.keys(layers[i].shapes)];
      return made.classList.toggle("found", wanted !== "" && names.some((text) => text.toLowerCase().includes(wanted)));
    });
    found.textContent = wanted ? `${fits.length} of ${layers.length} layers` : counted;
    if (fits.length) frame.scrollTop = Math.max(0, fits[0].offsetTop - 60);
  });
  found.textContent = counted;
  return [el("div", { class: "tools" }, found, search), frame];
}
