// The page to play with: reads what the build computed, draws it as SVG; every control is a form control.
const play = document.getElementById("laboratory");
const base = new URL(".", document.querySelector("script[src*='play.js']").src);
const choice = {}, cache = {};
const get = async name => (cache[name] ??= await (await fetch(new URL(name, base))).json());
const tag = (name, attributes, text = "") =>
  `<${name} ${Object.entries(attributes).map(([k, v]) => `${k}="${v}"`).join(" ")}>${text}</${name}>`;

function control(form, name, values, first) {
  const label = document.createElement("label"), select = document.createElement("select");
  label.textContent = name;
  select.name = name;
  select.append(...values.map(value => new Option(value, value, value === first, value === first)));
  label.append(select);
  form.append(label);
  choice[name] = select;
  select.addEventListener("change", show);
}

function paths(data, run, width, height) {
  const [left, right, top, bottom] = [50, 10, 10, 36];
  const all = [...data.exact.flat(), ...run.x.flat()].filter(Number.isFinite);
  const [low, high] = [Math.max(-60, Math.min(...all)), Math.min(60, Math.max(...all))];
  const root = t => Math.sqrt((t - data.t.at(-1)) / (data.t[0] - data.t.at(-1)));
  const x = t => left + (1 - root(Math.max(t, data.t.at(-1)))) * (width - left - right);
  const y = v => top + (high - Math.min(high, Math.max(low, v))) / (high - low) * (height - top - bottom);
  const line = (ts, vs) => vs.map((v, i) => `${x(ts[i]).toFixed(1)},${y(v).toFixed(1)}`).join(" ");
  let out = tag("path", { class: "axis", d: `M${left} ${top}V${height - bottom}H${width - right}` });
  for (const v of [low, (low + high) / 2, high]) out += tag("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end" }, v.toPrecision(2));
  out += data.exact.map(p => tag("polyline", { class: "exact", points: line(data.t, p) })).join("");
  out += run.x.map(p => tag("polyline", { class: "run", points: line(run.t, p) })).join("");
  out += run.t.map(t => tag("circle", { class: "node", cx: x(t).toFixed(1), cy: height - bottom, r: 3 }, tag("title", {}, `t = ${t}`))).join("");
  out += run.calls.map(t => tag("path", { class: "call", d: `M${x(t).toFixed(1)} ${height - bottom + 4}l3 7h-6z` }, tag("title", {}, `model asked at t = ${t}`))).join("");
  out += tag("text", { x: left, y: height - 6 }, `t = ${data.t[0]}`) + tag("text", { x: width - right, y: height - 6, "text-anchor": "end" }, `t = ${data.t.at(-1)}`);
  return tag("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "trajectories, exact in grey" }, out);
}

function weights(run, width, height) {
  const most = Math.max(...run.w.map(Math.abs)), step = (width - 60) / run.w.length, middle = height / 2;
  const bars = run.w.map((w, i) => {
    const size = Math.abs(w) / most * (middle - 14);
    const box = { class: w < 0 ? "bar minus" : "bar", x: (50 + i * step).toFixed(1), width: Math.max(2, step * .8).toFixed(1), y: (w < 0 ? middle : middle - size).toFixed(1), height: size.toFixed(1) };
    return tag("rect", box, tag("title", {}, `call ${i + 1}, t = ${run.calls[i]}: weight ${w}`));
  });
  const axis = tag("path", { class: "axis", d: `M50 ${middle}H${width - 10}` }) + tag("text", { x: 44, y: 16, "text-anchor": "end" }, most.toPrecision(2));
  return tag("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "weights of the model outputs in the result" }, axis + bars.join(""));
}

async function show() {
  const [process, grid, sampler, steps] = ["process", "grid", "sampler", "steps"].map(name => choice[name].value);
  const data = await get(`play-${process}.json`), run = data.runs[`${sampler}/${grid}/${steps}`];
  play.querySelector("output").textContent =
    `${sampler} on ${grid}, ${process}: ${run.nfe} model calls, RMS error ${run.error ?? "not finite"}`;
  play.querySelector("#paths").innerHTML = paths(data, run, 640, 340);
  play.querySelector("#weights").innerHTML = weights(run, 640, 150);
  play.querySelector("tbody").innerHTML = run.calls.map((t, i) => tag("tr", {}, tag("td", {}, i + 1) + tag("td", {}, t) + tag("td", {}, run.w[i]))).join("");
  play.dataset.shown = `${process}/${sampler}/${grid}/${steps}`;
}

(async () => {
  const listed = await get("play.json"), form = play.querySelector("form");
  control(form, "process", listed.processes, "VPLinear");
  control(form, "grid", listed.grids, "t2");
  control(form, "sampler", listed.samplers, "tab3");
  control(form, "steps", listed.steps.map(String), "6");
  form.addEventListener("submit", event => event.preventDefault());
  await show();
})();
