"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const json = (id) => JSON.parse($(id).textContent);
  document.documentElement.classList.add("js");

  const make = (tag, text, attributes = {}) => {
    const node = Object.assign(document.createElement(tag), attributes);
    node.textContent = text;
    return node;
  };

  function paste() {
    const blocks = [...document.querySelectorAll("pre[data-framework]")];
    if (!blocks.length) return;
    const bar = document.querySelector(".paste-bar"), shown = blocks[0].querySelector("code");
    const codes = blocks.map((block) => block.textContent);
    const label = make("label", "To paste, for "), choice = make("select", "", { id: "framework" });
    blocks.forEach((block, i) => choice.append(make("option", block.dataset.framework, { value: i })));
    choice.addEventListener("change", () => { shown.textContent = codes[choice.value]; });
    const button = make("button", "Copy", { type: "button", id: "copy" });
    const said = make("span", "", { role: "status" });
    button.addEventListener("click", async () => {
      try { await navigator.clipboard.writeText(shown.textContent); said.textContent = "Copied."; }
      catch { getSelection().selectAllChildren(shown); said.textContent = "Selected: press Ctrl+C."; }
    });
    label.append(choice);
    bar.replaceChildren(label, button, said);
  }

  function slider() {
    if (!$("percentile")) return;
    const { name, rungs } = json("ladder-data"), input = $("percentile"), out = $("slider-read");
    const lines = [...document.querySelectorAll("#norm-plot svg")].map((plot) => {
      const line = plot.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "line"));
      line.classList.add("chosen-line");
      return [plot.dataset, line];
    });
    const move = (value) => lines.forEach(([{ box, range }, line]) => {
      if (!(value > 0)) return;
      const [left, top, right, bottom] = box.split(" "), [low, high] = range.split(" ").map(Math.log10);
      const y = bottom - (Math.log10(value) - low) / (high - low) * (bottom - top);
      Object.entries({ x1: left, x2: right, y1: y, y2: y }).forEach(([k, v]) => line.setAttribute(k, v));
    });
    const show = () => {
      const r = rungs[input.value];
      out.replaceChildren(make("strong", `${r.percentile} percentile: ${name} = ${r.max_norm}`),
        ` · clips ${r.clips} · keeps ${r.retained} of the step on average · ${r.mode} · ${r.interval}`);
      move(r.value);
      input.setAttribute("aria-valuetext", `${r.percentile} percentile, ${name} ${r.max_norm}`);
    };
    input.addEventListener("input", show);
    show();
  }

  function table() {
    if (!$("layers")) return;
    const body = $("layers").tBodies[0], heads = [...$("layers").tHead.rows[0].cells], rows = [...body.rows];
    const key = (row, i) => row.cells[i].dataset.v ?? row.cells[i].textContent.trim();
    const amount = (text) => { const n = parseFloat(text.replace("∞", "Infinity")); return Number.isNaN(n) ? -Infinity : n; };
    heads.forEach((head, i) => {
      const numeric = head.classList.contains("n") || rows[0]?.cells[i].dataset.v !== undefined;
      const button = make("button", head.textContent, { type: "button" });
      button.addEventListener("click", () => {
        const first = numeric && i ? "descending" : "ascending", other = first === "ascending" ? "descending" : "ascending";
        const way = head.getAttribute("aria-sort") === first ? other : first, sign = way === "ascending" ? 1 : -1;
        heads.forEach((h) => h.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", way);
        const keyed = rows.map((row) => [numeric ? amount(key(row, i)) : key(row, i), row]);
        keyed.sort(([a], [b]) => sign * (numeric ? (a > b) - (a < b) : a.localeCompare(b)));
        body.append(...keyed.map(([, row]) => row));
      });
      head.replaceChildren(button);
    });
    let texts = null;
    const said = (count) => { $("filter-read").textContent = `${count} of ${rows.length} layers`; };
    const filter = () => {
      texts ??= rows.map((row) => [...row.cells].slice(1, 4).map((c) => c.textContent).join(" ").toLowerCase());
      const wanted = $("filter").value.toLowerCase();
      rows.forEach((row, i) => { row.hidden = !texts[i].includes(wanted); });
      said(rows.filter((row) => !row.hidden).length);
    };
    $("filter").addEventListener("input", filter);
    said(rows.length);
    addEventListener("beforeprint", () => { $("layers").closest("details")?.setAttribute("open", ""); });
  }

  function heat() {
    if (!$("heat")) return;
    const data = json("heat-data"), canvas = $("heat"), pen = canvas.getContext("2d"), columns = data.first.length;
    const bytes = Uint8Array.from(atob(data.codes), (c) => c.charCodeAt(0)), view = new DataView(bytes.buffer);
    const code = (layer, column) => view.getUint16(2 * (layer * columns + column), true);
    const all = data.names.map((_, i) => i), foot = 22;
    let rows = all, at = null, longest = 0;
    const gutter = () => Math.min(longest + 10, 300, canvas.clientWidth * 0.36);
    const color = (c) => c === 65535 ? [213, 94, 0] : c === 0 ? [150, 150, 150]
      : data.shades[Math.max(0, Math.floor((c - 2) * (data.shades.length - 1) / 65532))];
    const cells = document.createElement("canvas");
    const cut = (text, width) => {
      if (pen.measureText(text).width <= width) return text;
      let keep = Math.min(text.length, 80);
      while (keep > 1 && pen.measureText("…" + text.slice(-keep)).width > width) keep--;
      return "…" + text.slice(-keep);
    };
    function draw() {
      const ratio = devicePixelRatio || 1, width = canvas.clientWidth, style = getComputedStyle(canvas), font = `12px ${style.fontFamily}`;
      const tall = Math.min(Math.max(rows.length * 16, 64), 560);
      canvas.style.height = `${tall + foot}px`;
      canvas.width = width * ratio; canvas.height = (tall + foot) * ratio;
      pen.setTransform(ratio, 0, 0, ratio, 0, 0);
      pen.font = font;
      longest ||= Math.max(...[...data.names].sort((a, b) => b.length - a.length).slice(0, 99).map((name) => pen.measureText(name.slice(-80)).width));
      const left = gutter();
      const lines = Math.min(rows.length, tall), wide = (width - left) / columns, high = tall / lines;
      cells.width = columns; cells.height = lines;
      const pixels = new ImageData(columns, lines), crosses = [];
      for (let line = 0; line < lines; line++) {
        const from = Math.floor(line * rows.length / lines), to = Math.floor((line + 1) * rows.length / lines);
        for (let column = 0; column < columns; column++) {
          let most = 0;
          for (let r = from; r < to; r++) most = Math.max(most, code(rows[r], column));
          pixels.data.set([...color(most), 255], 4 * (line * columns + column));
          if (most === 65535 && wide > 7 && high > 9) crosses.push([left + (column + 0.5) * wide, (line + 0.5) * high]);
        }
      }
      cells.getContext("2d").putImageData(pixels, 0, 0);
      pen.imageSmoothingEnabled = false;
      pen.drawImage(cells, left, 0, width - left, tall);
      pen.fillStyle = "#000"; pen.textAlign = "center"; pen.textBaseline = "middle";
      crosses.forEach(([x, y]) => pen.fillText("✕", x, y));
      pen.fillStyle = style.color; pen.textAlign = "right"; pen.textBaseline = "middle";
      const every = Math.ceil(rows.length * 14 / tall);
      for (let r = 0; r < rows.length; r += every) pen.fillText(cut(data.names[rows[r]], left - 8), left - 6, Math.max(7, (r + 0.5) * tall / rows.length));
      const marks = Math.min(columns - 1, Math.max(1, Math.floor((width - left) / 110)));
      pen.textBaseline = "top";
      for (let mark = 0; mark <= marks; mark++) {
        const column = Math.round(mark * (columns - 1) / (marks || 1)), end = mark && mark === marks;
        pen.textAlign = end ? "right" : mark ? "center" : "left";
        const text = mark ? String(end ? data.last[column] : data.first[column]) : `step ${data.first[0]}`;
        pen.fillText(text, end ? width : mark ? left + (column + 0.5) * wide : left, tall + 5);
      }
      pen.textAlign = "left"; pen.textBaseline = "alphabetic";
      if (at) {
        pen.lineWidth = 2; pen.strokeStyle = style.color;
        pen.strokeRect(left + at.column * wide - 1, at.row * tall / rows.length - 1, wide + 2, Math.max(tall / rows.length, 2) + 2);
      }
    }
    function read() {
      const c = code(rows[at.row], at.column), first = data.first[at.column], last = data.last[at.column];
      const norm = 10 ** (data.low + (c - 2) / 65532 * (data.high - data.low));
      const said = c === 65535 ? "nonfinite" : c === 0 ? "no gradient" : c === 1 ? "gradient norm 0" : `gradient norm ${+norm.toPrecision(3)}`;
      $("heat-read").textContent = `${data.names[rows[at.row]]} · ${first === last ? `step ${first}` : `steps ${first}–${last}, largest`}: ${said}`;
      draw();
    }
    const clamp = (value, count) => Math.max(0, Math.min(count - 1, value));
    canvas.addEventListener("pointermove", (event) => {
      const box = canvas.getBoundingClientRect(), left = gutter();
      const row = clamp(Math.floor((event.clientY - box.top) / (box.height - foot) * rows.length), rows.length);
      const column = clamp(Math.floor((event.clientX - box.left - left) / (box.width - left) * columns), columns);
      if (at?.row !== row || at?.column !== column) { at = { row, column }; read(); }
    });
    canvas.addEventListener("keydown", (event) => {
      const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], PageUp: [-10, 0], PageDown: [10, 0], Home: [0, -columns], End: [0, columns] };
      const move = moves[event.key];
      if (!move) return;
      event.preventDefault();
      at = at ? { row: clamp(at.row + move[0], rows.length), column: clamp(at.column + move[1], columns) } : { row: 0, column: 0 };
      read();
    });
    const zoom = () => {
      const wanted = $("heat-zoom").value, found = all.filter((i) => data.names[i].startsWith(wanted));
      rows = found.length ? found : all; at = null;
      $("heat-read").textContent = found.length ? `${found.length} of ${all.length} layers` : `No layer begins with “${wanted}”: all are shown.`;
      draw();
    };
    $("heat-zoom").addEventListener("input", zoom);
    $("heat-all").addEventListener("click", () => { $("heat-zoom").value = ""; zoom(); });
    addEventListener("resize", draw);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    draw();
  }

  paste(); slider(); table(); heat();
})();
