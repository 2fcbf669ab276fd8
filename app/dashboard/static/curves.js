// Draws a job's curves, or two jobs' over each other, and asks for new points while a job runs and the tab is seen.
"use strict";
(() => {
  const place = document.getElementById("curves");
  if (!place) return;
  const jobs = JSON.parse(place.dataset.jobs);
  const note = document.getElementById("no-curves"), none = note.textContent;
  const EVERY_MS = 3000, HEIGHT = 170;
  const charts = new Map();
  const shown = (value) => (value == null ? "–" : Number(value.toPrecision(4)).toString());
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function figureOf(name) {
    for (const figure of place.children) if (figure.dataset.series === name) return figure;
    const figure = document.getElementById("figure").content.firstElementChild.cloneNode(true);
    figure.dataset.series = name;
    figure.querySelector(".name").textContent = name;
    const after = Array.from(place.children).find((other) => other.dataset.series > name);
    place.insertBefore(figure, after ?? null);
    return figure;
  }

  function tell(figure, data, index) {
    const values = data.slice(1).map((column) => (index == null ? column.findLast((value) => value != null) : column[index]));
    const where = index == null ? "last" : `step ${data[0][index]}:`;
    figure.querySelector(".told").textContent = `${where} ${values.map(shown).join(" / ")}`;
  }

  function describe(name, data) {
    const told = data.slice(1).map((column) => {
      const values = column.filter((value) => value != null);
      if (!values.length) return "none";
      const lowest = values.reduce((low, value) => Math.min(low, value));
      return `first ${shown(values[0])}, last ${shown(values.at(-1))}, lowest ${shown(lowest)}`;
    });
    return `${name} from step ${data[0][0]} to ${data[0].at(-1)}: ${told.join("; other job: ")}`;
  }

  function draw(name, tables) {
    // Both jobs on one axis of steps; where one has no point at a step, its line goes on to its next.
    const data = tables.length === 1 ? tables[0] : uPlot.join(tables.map((table) => table ?? [[], []]));
    const figure = figureOf(name), box = figure.querySelector(".chart");
    const known = charts.get(name);
    if (known) {
      known.data = data;
      known.plot.setData(data);
    } else {
      const entry = { data, plot: null };
      const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
      const line = (stroke, dash) => ({ stroke, dash, width: 1.5, spanGaps: true, points: { show: false } });
      entry.plot = new uPlot({
        width: box.clientWidth, height: HEIGHT, legend: { show: false },
        scales: { x: { time: false } },
        axes: [{ ...axis, size: 26 }, { ...axis, size: 52, values: (_, ticks) => ticks.map(shown) }],
        series: [{}, line(colour("--curve")), line(colour("--other"), [6, 4])].slice(0, data.length),
        cursor: { y: false, drag: { x: false, y: false } },
        hooks: { setCursor: [(plot) => tell(figure, entry.data, plot.cursor.idx)] },
      }, data, box);
      charts.set(name, entry);
    }
    tell(figure, data, null);
    box.setAttribute("aria-label", describe(name, data));
  }

  async function look() {
    const told = await Promise.all(jobs.map(async (job) => {
      const answer = await fetch(`/dashboard/jobs/${job}/curves`, { cache: "no-cache" });
      if (!answer.ok) throw new Error(`${answer.status}`);
      return answer.json();
    }));
    const names = [...new Set(told.flatMap((one) => Object.keys(one.series)))].sort();
    for (const name of names) draw(name, told.map((one) => one.series[name]));
    note.textContent = none;
    note.hidden = names.length > 0;
    return told.some((one) => one.active);
  }

  async function again() {
    let more = true;
    if (!document.hidden) {
      try {
        more = await look();
      } catch {
        note.textContent = "The curves could not be read; they are asked for again every few seconds.";
        note.hidden = false;
      }
    }
    if (more) setTimeout(again, EVERY_MS);
  }

  new ResizeObserver(() => {
    for (const [name, { plot }] of charts) plot.setSize({ width: figureOf(name).querySelector(".chart").clientWidth, height: HEIGHT });
  }).observe(place);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const { plot } of charts.values()) plot.destroy();
    charts.clear();
    look();
  });
  again();
})();
