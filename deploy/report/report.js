"use strict";
// Draws the page's curves with uPlot, and lets the reader browse its samples. All texts are set as text, never as HTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const runs = data.runs;
  const several = runs.length > 1;
  const DASHES = [[], [7, 4], [2, 3]];
  const HEIGHT = 210;
  const drawn = [];

  // -- small things ---------------------------------------------------------------------------------------------------

  const byId = (id) => document.getElementById(id);
  const theme = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const isThere = (value) => value !== null && value !== undefined;
  const mean = (values) => values.reduce((sum, one) => sum + one, 0) / values.length;

  function element(name, content, className) {
    const made = document.createElement(name);
    if (className) made.className = className;
    for (const one of [content].flat()) if (isThere(one)) made.append(one);
    return made;
  }

  function figure(value) {
    if (!isThere(value)) return "–";
    if (Math.abs(value) >= 1000) return Math.round(value).toLocaleString("en");
    const rounded = Number(value.toPrecision(4));
    if (rounded !== 0 && Math.abs(rounded) < 1e-3) return rounded.toExponential();
    return rounded === 0 ? "0" : String(rounded);
  }

  // -- curves ---------------------------------------------------------------------------------------------------------

  function curvesOf(chart) {
    const found = [];
    runs.forEach((run, place) => chart.curves.forEach((curve, number) => {
      const table = run.tables[curve.table];
      if (!(table[curve.name] || []).some(isThere)) return;
      found.push({
        x: table.x,
        y: table[curve.name],
        band: curve.band && table[curve.band],
        of: chart.most === "n" ? run.n : null,
        label: several ? `${run.label}: ${curve.label}` : curve.label,
        colour: data.colours[(several ? place : number) % data.colours.length],
        dash: DASHES[several ? number % DASHES.length : 0],
        points: curve.table === "versions",
      });
    }));
    return found;
  }

  function drawChart(chart, parent) {
    const curves = curvesOf(chart);
    if (!curves.length) return false;
    const tables = [], series = [{ label: "step" }], bands = [];
    for (const curve of curves) {
      tables.push([curve.x, curve.y]);
      series.push({
        label: curve.label, stroke: curve.colour, dash: curve.dash, width: curve.points ? 2 : 1.3, spanGaps: true,
        value: (_plot, value) => curve.of && isThere(value) ? `${figure(value)}/${curve.of}` : figure(value),
        points: { show: curve.points, size: 6, fill: curve.colour },
      });
      if (!curve.band) continue;
      for (const sign of [1, -1]) {
        tables.push([curve.x, curve.y.map((one, at) => isThere(one) ? one + sign * curve.band[at] : null)]);
        series.push({
          label: sign > 0 ? "95 % upper" : "95 % lower", stroke: "transparent", points: { show: false }, spanGaps: true,
          value: (_plot, value) => figure(value), class: "edge",
        });
      }
      bands.push({ series: [series.length - 2, series.length - 1], fill: `${curve.colour}22` });
    }
    const most = chart.most === "n" ? Math.max(...runs.map((run) => run.n)) : chart.most;
    show(parent, chart, uPlot.join(tables), { series, bands, range: (least, greatest) => bounds(chart, least, greatest, most) });
    return true;
  }

  function bounds(chart, least, greatest, most) {
    if (!isThere(least)) return [0, 1];
    const room = (greatest - least || Math.abs(greatest) || 12) * 0.08;
    return [isThere(chart.least) ? chart.least : least - room, isThere(most) ? Math.max(most, greatest) : greatest + room];
  }

  function show(parent, chart, columns, options) {
    const title = element("h3", [chart.title, chart.unit ? element("span", `, ${chart.unit}`, "unit") : null]);
    const plot = element("div", null, "plot");
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", `${chart.title}${chart.unit ? `, ${chart.unit}` : ""}`);
    const box = element("figure", [title, plot, element("figcaption", chart.note)]);
    parent.append(box);
    const axis = {
      stroke: () => theme("--faint"), font: "12px system-ui, sans-serif",
      grid: { stroke: () => theme("--line"), width: 1 }, ticks: { stroke: () => theme("--line"), width: 1 },
    };
    drawn.push({
      plot,
      chart: new uPlot({
        width: plot.clientWidth || 320, height: HEIGHT,
        series: options.series, bands: options.bands || [],
        scales: { x: { time: false, range: options.xRange }, y: { range: (_plot, least, greatest) => options.range(least, greatest) } },
        axes: [
          { ...axis, size: 32, values: (_plot, ticks) => ticks.map(figure) },
          { ...axis, size: 56, values: (_plot, ticks) => ticks.map(figure) },
        ],
        cursor: { y: false, sync: options.alone ? undefined : { key: "steps" } },
        legend: { markers: { width: 0, fill: (_plot, number) => options.series[number].stroke } },
      }, columns, plot),
    });
  }

  function drawCurves() {
    const found = data.charts.filter((chart) => drawChart(chart, byId("charts")));
    if (drawDistances(byId("charts"))) found.push("distances");
    byId("no-curves").hidden = found.length > 0;
    if (!data.others.length) return;
    const select = byId("others").querySelector("select");
    select.append(...["", ...data.others].map((name) => element("option", name)));
    select.addEventListener("change", () => {
      byId("other").replaceChildren();
      const curves = [{ label: select.value, table: "steps", name: select.value }];
      if (select.value) drawChart({ title: select.value, unit: "", note: "", curves }, byId("other"));
    });
    byId("others").hidden = false;
  }

  function drawDistances(parent) {
    const tables = [], series = [{ label: "√KL", value: (_plot, value) => figure(value) }];
    runs.forEach((run, place) => {
      const training = run.tables.steps;
      const colour = data.colours[several ? place : 1];
      const add = (label, points, width, stroke) => {
        if (!points.length) return;
        points.sort((one, other) => one.x - other.x);
        let last = -Infinity;
        const xs = points.map(({ x }) => (last = Math.max(x, last + 1e-9)));  // uPlot joins by x: each one once
        tables.push([xs, points.map(({ y }) => y)]);
        series.push({
          label: several ? `${run.label}: ${label}` : label, stroke, width: 0, paths: () => null, value: (_plot, value) => figure(value),
          points: { show: true, size: width, fill: stroke, stroke },
        });
      };
      const rewards = training.reward_mean || [], kl = training.kl_policy_prior || [];
      const steps = rewards.map((y, at) => ({ x: Math.sqrt(Math.max(0, kl[at])), y, kl: kl[at] })).filter((one) => isThere(one.y) && isThere(one.kl));
      add("training", steps, 3, `${data.colours[several ? place : 0]}aa`);
      add("validation", run.distances.filter((one) => !one.label.endsWith("test")), 8, colour);
      add("test", run.distances.filter((one) => one.label.endsWith("test")), 11, several ? colour : data.colours[2]);
    });
    if (!tables.length) return false;
    const chart = {
      title: "Reward against the distance from the prior", unit: "√KL, nats^½",
      note: "A point per training step, validated version and test. Steep at first; where it flattens or falls, more distance buys little.",
    };
    const range = (least, greatest) => bounds({}, least, greatest);
    show(parent, chart, uPlot.join(tables), { series, alone: true, range, xRange: (_plot, least, greatest) => range(least, greatest) });
    return true;
  }

  function drawHistograms() {
    const parent = byId("histograms");
    runs.forEach((run) => Object.entries(run.histograms).forEach(([title, found]) => {
      const last = found.edges.length - 1;
      const columns = [found.edges], series = [{ label: "from", value: (_plot, value) => figure(value) }];
      Object.entries(found.counts).forEach(([label, counts], number) => {
        const colour = data.colours[number % data.colours.length];
        columns.push([...counts, counts[counts.length - 1]]);
        series.push({
          label, stroke: colour, fill: `${colour}2b`, width: 1.6, paths: uPlot.paths.stepped({ align: 1 }), points: { show: false },
          value: (_plot, value, _number, at) => (at === null || at === last ? "–" : figure(value)),
        });
      });
      const name = title[0].toUpperCase() + title.slice(1);
      const chart = { title: several ? `${run.label}: ${name}` : name, unit: "number of prompts", note: "" };
      show(parent, chart, columns, { series, alone: true, range: (_least, greatest) => [0, greatest * 1.05 || 1] });
    }));
    byId("no-histograms").hidden = parent.childElementCount > 0;
  }

  function followThePage() {
    new ResizeObserver(() => drawn.forEach(({ plot, chart }) => {
      if (plot.isConnected && plot.clientWidth && plot.clientWidth !== chart.width) chart.setSize({ width: plot.clientWidth, height: HEIGHT });
    })).observe(document.querySelector("main"));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach(({ chart }) => chart.redraw(false, true)));
  }

  // -- samples --------------------------------------------------------------------------------------------------------

  const PAGE = 20;
  const change = (one) => isThere(one.after.reward) && isThere(one.before.reward) ? one.after.reward - one.before.reward : null;
  const ORDERS = {
    prompt: {
      "best": (one) => -one.after.reward,
      "worst": (one) => one.after.reward,
      "most changed": (one) => -Math.abs(change(one)),
      "most improved": (one) => -change(one),
      "most worsened": (one) => change(one),
      "longest output": (one) => -one.after.tokens,
      "as evaluated": (one) => Number(one.id),
    },
    group: {
      "best": (one) => -Math.max(...rewards(one)),
      "worst": (one) => mean(rewards(one)),
      "largest spread of rewards": (one) => Math.min(...rewards(one)) - Math.max(...rewards(one)),
      "smallest effective sample size": (one) => one.ess,
      "as sampled": () => 0,
    },
  };
  // What an order needs: a sample without it comes last.
  const isRanked = (one) => one.kind === "group" ? rewards(one).length > 0 : isThere(one.after.reward) && isThere(one.before.reward);
  const rewards = (group) => group.outputs.map((one) => one.reward).filter(isThere);

  function browse() {
    const form = byId("browse");
    if (!form) return;
    const samples = JSON.parse(byId("samples-data").textContent);
    const { run, kind, order, search } = form.elements;
    let shown = PAGE;
    const texts = new Map();
    const textOf = (one) => {
      if (!texts.has(one)) {
        const outputs = one.outputs || [one.before, one.after];
        texts.set(one, [one.prompt, one.reference || "", ...outputs.map((output) => output.text)].join("\n").toLowerCase());
      }
      return texts.get(one);
    };
    function orders() {
      order.replaceChildren(...Object.keys(ORDERS[kind.value]).map((name) => element("option", name)));
    }
    function list() {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const all = samples.filter((one) => one.run === Number(run.value) && one.kind === kind.value);
      const found = all.filter((one) => words.every((word) => textOf(one).includes(word)));
      const rank = ORDERS[kind.value][order.value];
      const keyed = found.map((one) => [isRanked(one) ? rank(one) : Infinity, one]);
      keyed.sort(([one], [other]) => (one === other ? 0 : one - other));
      byId("list").replaceChildren(...keyed.slice(0, shown).map(([, one]) => (one.kind === "group" ? groupBox(one) : promptBox(one))));
      byId("found").textContent = `${Math.min(shown, found.length)} of ${found.length}${found.length < all.length ? ` found, of ${all.length}` : ""}`;
      byId("more").hidden = found.length <= shown;
    }
    const again = () => { shown = PAGE; list(); };
    form.addEventListener("submit", (event) => event.preventDefault());
    run.addEventListener("change", again);
    kind.addEventListener("change", () => { orders(); again(); });
    order.addEventListener("change", again);
    search.addEventListener("input", again);
    byId("more").addEventListener("click", () => { shown += PAGE; list(); });
    const first = samples[0];
    run.value = String(first.run);
    kind.value = first.kind;
    orders();
    list();
  }

  function difference(value) {
    if (value === null) return null;
    return element("span", `${value >= 0 ? "+" : "−"}${figure(Math.abs(value))}`, value > 0 ? "good" : value < 0 ? "bad" : "");
  }

  function promptBox(one) {
    const head = element("header", [`#${one.id}`, element("span", [`reward ${figure(one.before.reward)} → ${figure(one.after.reward)} `, change(one) === null ? null : "(", difference(change(one)), change(one) === null ? null : ")"])]);
    const outputs = [outputBox("SFT", one.before), outputBox("aligned", one.after)];
    if (isThere(one.reference)) outputs.unshift(outputBox("reference", { text: one.reference, reward: one.reference_reward, scores: one.reference_scores }));
    return element("article", [head, element("div", one.prompt.trim(), "prompt text"), element("div", outputs, "outputs")], "sample");
  }

  function outputBox(title, output) {
    const figures = [`reward ${figure(output.reward)}`];
    for (const [name, value] of Object.entries(output.scores || {})) figures.push(`${name} ${figure(value)}`);
    if (isThere(output.tokens)) figures.push(`${output.tokens} tokens`);
    if (output.finished === false) figures.push("not finished");
    return element("div", [element("h4", title), element("div", figures.join(" · "), "figures"), element("div", output.text.trim() || "(empty)", "text")]);
  }

  function groupBox(one) {
    const count = one.outputs.length;
    const head = element("header", [
      `group ${one.id.slice(0, 8)}`, `round ${one.round}, sampled from version ${one.version}`,
      `effective sample size of α ${figure(one.ess)}/${count}`,
    ]);
    const reference = isThere(one.reference) ? element("div", outputBox("reference", { text: one.reference, reward: one.reference_reward }), "weighed") : null;
    return element("article", [head, element("div", one.prompt.trim(), "prompt text"), reference, ...one.outputs.map(weighed)], "sample");
  }

  function weighed(output) {
    const bar = element("span", null, "bar");
    bar.style.width = `${5 * (output.alpha || 0)}rem`;
    const figures = `α ${figure(output.alpha)} · β ${figure(output.beta)} · reward ${figure(output.reward)} · log p ${figure(output.log_p)} · log q′ ${figure(output.log_q)} · ${output.tokens} tokens${output.finished ? "" : " · not finished"}`;
    return element("div", [element("div", [bar, figures], "figures"), element("div", output.text.trim() || "(empty)", "text")], "weighed");
  }

  drawCurves();
  drawHistograms();
  browse();
  followThePage();
  performance.mark("interactive");
})();
