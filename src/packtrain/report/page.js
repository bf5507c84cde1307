// Shows the values under the pointer or the arrow keys, and zooms into charts. The page can be read without it.
window.packtrainCharts = (() => {
  const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 4 });
  const plain = new Intl.NumberFormat("en");
  const units = ["B", "kB", "MB", "GB", "TB"];
  const write = {
    decimal: (v) => (Math.abs(v) >= 0.001 || v === 0 ? String(Number(v.toPrecision(4))) : v.toExponential(2)),
    short: (v) => compact.format(v),
    rate: (v) => v.toExponential(2),
    size: (v) => {
      let i = 0;
      while (v >= 999.5 && i < 4) { v /= 1000; i += 1; }
      return `${i ? String(Number(v.toFixed(v < 9.995 ? 2 : 1))) : v.toFixed(0)} ${units[i]}`;
    },
  };
  const KEYS = "Arrow keys read values, Home and End the first and last, plus and minus zoom, Escape shows all.";
  const percent = (share) => `${(100 * share).toFixed(2)}%`;
  const make = (tag, attributes, text) => {
    const node = document.createElementNS(document.querySelector(".plot svg").namespaceURI, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  // The last place in ascending xs that is not beyond x; -1 if there is none.
  const placeOf = (xs, x) => {
    let low = 0, high = xs.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (xs[middle] <= x) low = middle + 1; else high = middle;
    }
    return low - 1;
  };
  const nearest = (xs, x) => {
    const before = Math.max(0, placeOf(xs, x)), after = Math.min(xs.length - 1, before + 1);
    return Math.abs(xs[before] - x) <= Math.abs(xs[after] - x) ? before : after;
  };
  const ticksOf = (low, high, count) => {
    const rough = (high - low) / count, size = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((m) => m * size).find((s) => s >= rough * (1 - 1e-9));
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) found.push(i * step);
    return [found, step];
  };
  const tickText = (value, step, number, last) => {
    if (number === "size" || number === "rate") return write[number](value);
    if (last >= 10000) return compact.format(value);
    if (Math.abs(value) < 1e-12) return "0";
    return Math.abs(value) < 0.001 ? value.toExponential(1) : value.toFixed(Math.max(0, Math.min(8, -Math.floor(Math.log10(step) + 1e-9) + (String(step).includes("25") ? 1 : 0))));
  };

  // One drawing of a figure: a view and a scale of it. `zoom` is the shown stretch of the horizontal axis, or null for all.
  class Drawing {
    constructor(chart, plot) {
      this.chart = chart;
      this.plot = plot;
      this.svg = plot.querySelector("svg");
      this.view = Number(this.svg.dataset.view);
      this.isLog = this.svg.dataset.log === "1";
      this.whole = this.svg.dataset.x.split(",").map(Number);
      this.wholeY = this.svg.dataset.y.split(",").map(Number);
      this.height = Number(this.svg.getAttribute("height"));
      this.zoom = null;
      this.at = -1;
      // The browser would show the title as a second, slower tooltip.
      const title = this.svg.querySelector("title"), about = this.svg.querySelector("desc");
      this.svg.setAttribute("aria-label", title.textContent);
      this.svg.removeAttribute("aria-labelledby");
      this.svg.setAttribute("aria-describedby", about.id);
      plot.setAttribute("role", "application");
      plot.setAttribute("aria-roledescription", "chart");
      plot.setAttribute("aria-label", `${title.textContent}. ${KEYS}`);
      plot.setAttribute("aria-describedby", about.id);
      title.remove();
      plot.tabIndex = 0;
      this.original = [...this.svg.childNodes];
      this.cursor = make("line", { class: "cursor", y1: "0", y2: "100%" });
      this.listen();
    }

    get range() { return this.zoom || this.whole; }
    get longest() { return this.chart.series.reduce((a, b) => (b.ys.length > a.ys.length ? b : a)); }
    share(x) { return (x - this.range[0]) / (this.range[1] - this.range[0]); }

    listen() {
      const { svg, plot } = this;
      let from = null, band = null;
      const shareAt = (event) => {
        const box = svg.getBoundingClientRect();
        return Math.max(0, Math.min(1, (event.clientX - box.left) / box.width));
      };
      const valueAt = (share) => this.range[0] + share * (this.range[1] - this.range[0]);
      const drop = () => { band?.remove(); from = band = null; this.chart.isDragged = false; };
      plot.addEventListener("pointermove", (event) => {
        const share = shareAt(event);
        if (from !== null && Math.abs(share - from) * svg.getBoundingClientRect().width > 6) {
          band ??= make("rect", { class: "band", y: "0", height: "100%" });
          band.setAttribute("x", percent(Math.min(from, share)));
          band.setAttribute("width", percent(Math.abs(share - from)));
          svg.append(band);
          this.hide();
          return;
        }
        this.show(nearest(this.longest.xs[this.view], valueAt(share)));
      });
      plot.addEventListener("pointerdown", (event) => {
        if (event.button !== 0) return;
        from = shareAt(event);
        this.chart.isDragged = true;
        // So that a drag may end outside of the chart.
        plot.setPointerCapture(event.pointerId);
      });
      plot.addEventListener("pointerup", (event) => {
        const ends = band ? [valueAt(Math.min(from, shareAt(event))), valueAt(Math.max(from, shareAt(event)))] : null;
        drop();
        if (ends) this.zoomTo(...ends);
      });
      plot.addEventListener("pointercancel", drop);
      plot.addEventListener("dblclick", () => this.zoomTo(...this.whole));
      plot.addEventListener("pointerleave", () => { if (document.activeElement !== plot) this.hide(); });
      plot.addEventListener("blur", () => this.hide());
      plot.addEventListener("keydown", (event) => this.press(event));
    }

    press(event) {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const last = this.longest.ys.length - 1, far = event.shiftKey ? Math.max(2, Math.round(last / 20)) : 1;
      const moves = { ArrowLeft: this.at - far, ArrowRight: this.at + far, Home: 0, End: last };
      if (event.key in moves) {
        const [a, b] = this.range, xs = this.longest.xs[this.view];
        const start = event.key === "ArrowRight" ? nearest(xs, a) : nearest(xs, b);
        this.show(this.at < 0 && event.key.startsWith("Arrow") ? start : moves[event.key], true);
      } else if (event.key === "+" || event.key === "=") this.scale(0.5);
      else if (event.key === "-") this.scale(2);
      else if (event.key === "0") this.zoomTo(...this.whole);
      else if (event.key === "Escape" && this.at >= 0) this.hide();
      else if (event.key === "Escape" && this.zoom) this.zoomTo(...this.whole);
      else return;
      event.preventDefault();
    }

    // Zooms about the value that is shown or, without one, the middle.
    scale(factor) {
      const [a, b] = this.range, middle = this.at >= 0 ? this.longest.xs[this.view][this.at] : (a + b) / 2;
      this.zoomTo(middle - (middle - a) * factor, middle + (b - middle) * factor, true);
    }

    zoomTo(a, b, isSaid = false) {
      const [low, high] = this.whole, xs = this.longest.xs[this.view];
      a = Math.max(low, a);
      b = Math.min(high, b);
      // Less than about two points would show nothing.
      const least = Math.max((high - low) * 1e-9, (2 * (high - low)) / Math.max(2, xs.length * 8));
      if (b - a < least) return;
      this.zoom = a <= low && b >= high ? null : [a, b];
      this.draw();
      this.chart.update();
      if (this.at >= 0) this.show(this.at);
      if (isSaid) this.chart.say(this.zoom ? `${this.written(a)} to ${this.written(b)}` : "All shown");
    }

    written(x) { return `${plain.format(Math.round(x))} ${this.chart.data.views[this.view]}`; }

    draw() {
      this.cursor.remove();
      if (!this.zoom) { this.svg.replaceChildren(...this.original); return; }
      const [a, b] = this.zoom, seen = [];
      const shown = this.chart.series.map((series) => {
        const xs = series.xs[this.view];
        // With a neighbour on either side, so that lines reach the edges.
        const first = Math.max(0, placeOf(xs, a)), stop = Math.min(xs.length, placeOf(xs, b) + 2);
        for (let i = first; i < stop; i += 1)
          if (xs[i] >= a && xs[i] <= b && series.ys[i] !== null && (!this.isLog || series.ys[i] > 0)) seen.push(series.ys[i]);
        return [series, first, stop];
      });
      let low = Math.min(...seen), high = Math.max(...seen);
      if (!seen.length) [low, high] = this.wholeY;
      const room = this.isLog ? 0 : (high - low) * 0.06 || Math.abs(high) / 10 || 1;
      [low, high] = this.isLog ? [low / 1.03, high * 1.03] : [low - room, high + room];
      const y = (v) => (this.isLog ? 1 - Math.log(v / low) / Math.log(high / low) : 1 - (v - low) / (high - low));
      const texts = this.original.filter((node) => node.nodeName === "desc");
      this.svg.replaceChildren(...texts, this.grid(low, high, y), this.curves(shown, y), ...this.points(shown, y));
    }

    grid(low, high, y) {
      const group = make("g", {}), [ys, stepY] = ticksOf(low, high, 5), [xs, stepX] = ticksOf(...this.zoom, 5);
      const { number, views } = this.chart.data;
      for (const value of ys) {
        const at = percent(y(value));
        group.append(make("line", { x1: "0", x2: "100%", y1: at, y2: at, class: "grid" }));
        group.append(make("text", { x: "-8", y: at, dy: "0.32em", "text-anchor": "end" }, tickText(value, stepY, number, ys.at(-1))));
      }
      group.append(make("line", { x1: "0", x2: "100%", y1: "100%", y2: "100%", class: "base" }));
      for (const value of xs) {
        const at = percent(this.share(value));
        group.append(make("line", { x1: at, x2: at, y1: "100%", y2: this.height + 4, class: "grid" }));
        group.append(make("text", { x: at, y: this.height + 18, "text-anchor": "middle" }, tickText(value, stepX, "decimal", xs.at(-1))));
      }
      group.append(make("text", { x: "100%", y: this.height + 32, "text-anchor": "end", class: "axis" }, views[this.view]));
      for (const mark of this.chart.data.marks) {
        const share = this.share(mark[this.view]);
        if (share < 0 || share > 1) continue;
        group.append(make("line", { x1: percent(share), x2: percent(share), y1: "0", y2: "100%", class: "mark" }));
      }
      for (const [name, value] of this.chart.data.levels) {
        if (value < low || value > high) continue;
        const at = percent(y(value));
        group.append(make("line", { x1: "0", x2: "100%", y1: at, y2: at, class: "level" }));
        group.append(make("text", { x: "100%", y: at, dx: "8", dy: "0.32em", class: "level-name" }, `${name} ${write.decimal(value)}`));
      }
      return group;
    }

    curves(shown, y) {
      // Two layers: the outer svg lets labels stand beside the curves, and this one cuts the curves at its edge.
      const layer = make("svg", { viewBox: "0 0 1000 1000", preserveAspectRatio: "none", width: "100%", height: "100%", class: "curves cut" });
      for (const [series, first, stop] of shown) {
        const words = [];
        let pen = "M";
        for (let i = first; i < stop; i += 1) {
          const value = series.ys[i];
          if (value === null || (this.isLog && value <= 0)) { pen = "M"; continue; }
          words.push(`${pen}${(1000 * this.share(series.xs[this.view][i])).toFixed(1)} ${(1000 * y(value)).toFixed(1)}`);
          pen = "L";
        }
        layer.append(make("path", { d: words.join(""), class: series.css, "vector-effect": "non-scaling-stroke" }));
      }
      return layer;
    }

    points(shown, y) {
      const found = [];
      for (const [series, first, stop] of shown) {
        const isLonely = stop - first < 60;
        for (let i = first; i < stop; i += 1) {
          const share = this.share(series.xs[this.view][i]), value = series.ys[i];
          if (share < 0 || share > 1) continue;
          if (value === null) found.push(make("text", { x: percent(share), y: "4", "text-anchor": "middle", class: "bad" }, "×"));
          else if ((isLonely || series.kind === "dots") && (!this.isLog || value > 0))
            found.push(make("circle", { cx: percent(share), cy: percent(y(value)), r: "3", class: series.colourCss }));
        }
      }
      return found.slice(0, 600);
    }

    hide() {
      this.at = -1;
      this.chart.tip.hidden = true;
      this.cursor.remove();
    }

    show(index, isSaid = false) {
      const xs = this.longest.xs[this.view];
      this.at = Math.max(0, Math.min(xs.length - 1, index));
      const x = xs[this.at];
      if (this.zoom && (x < this.zoom[0] || x > this.zoom[1])) {
        const half = (this.zoom[1] - this.zoom[0]) / 2, [low, high] = this.whole;
        const middle = Math.max(low + half, Math.min(high - half, x));
        this.zoom = [middle - half, middle + half];
        this.draw();
      }
      const share = this.share(x), { tip, figure, series: all, data } = this.chart;
      this.cursor.setAttribute("x1", percent(share));
      this.cursor.setAttribute("x2", percent(share));
      this.svg.append(this.cursor);
      const head = document.createElement("b");
      head.textContent = this.written(x);
      tip.replaceChildren(head);
      const reach = (this.range[1] - this.range[0]) / 40, words = [head.textContent];
      for (const series of all) {
        const j = nearest(series.xs[this.view], x);
        if (Math.abs(series.xs[this.view][j] - x) > reach) continue;
        const value = series.ys[j], row = document.createElement("div"), dot = document.createElement("i");
        dot.className = series.colourCss;
        words.push(`${series.name}: ${value === null ? "not finite" : write[data.number](value)}`);
        row.append(dot, words.at(-1));
        tip.append(row);
      }
      if (isSaid) this.chart.say(words.join(", "));
      tip.hidden = false;
      const frame = figure.getBoundingClientRect(), box = this.svg.getBoundingClientRect();
      const left = box.left - frame.left + share * box.width;
      const right = left + 12 + tip.offsetWidth > frame.width ? left - tip.offsetWidth - 12 : left + 12;
      tip.style.left = `${Math.max(0, Math.min(right, frame.width - tip.offsetWidth))}px`;
      tip.style.top = `${box.top - frame.top + 8}px`;
    }
  }

  class Chart {
    constructor(figure) {
      this.figure = figure;
      this.data = JSON.parse(figure.querySelector("script").textContent);
      this.isDragged = false;
      this.series = this.data.series.map((series) => ({
        ...series,
        css: `${series.kind} ${series.css}`,
        colourCss: series.css,
        // A number stands for a whole axis that is that many times the first.
        xs: series.xs.map((xs) => (typeof xs === "number" ? series.xs[0].map((x) => x * xs) : xs)),
      }));
      this.tip = document.createElement("div");
      this.tip.className = "tip";
      this.tip.hidden = true;
      this.tip.setAttribute("aria-hidden", "true");
      this.said = document.createElement("p");
      this.said.className = "said";
      this.said.setAttribute("role", "status");
      figure.append(this.tip, this.said);
      this.drawings = [...figure.querySelectorAll(".plot")].map((plot) => new Drawing(this, plot));
      this.addButtons();
    }

    get shown() { return this.drawings.find((drawing) => drawing.plot.offsetParent !== null) || this.drawings[0]; }
    say(text) { this.said.textContent = text; }

    addButtons() {
      const title = this.figure.querySelector("h3").textContent, group = document.createElement("div");
      group.className = "zoom";
      const add = (text, label, act) => {
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = text;
        button.setAttribute("aria-label", `${label}: ${title}`);
        button.addEventListener("click", act);
        group.append(button);
        return button;
      };
      add("+", "Zoom in", () => this.shown.scale(0.5));
      add("−", "Zoom out", () => this.shown.scale(2));
      this.reset = add("All", "Show all", () => this.shown.zoomTo(...this.shown.whole, true));
      this.figure.querySelector(".chart-head").append(group);
      for (const input of this.figure.querySelectorAll(".switches input")) input.addEventListener("change", () => this.update());
      this.update();
    }

    update() { this.reset.setAttribute("aria-disabled", String(!this.shown.zoom)); }
  }

  let charts = [];
  const api = {
    // Makes the charts of the page work; `saved` is what `save` gave for a page before.
    start: (saved = new Map()) => {
      charts = [...document.querySelectorAll("figure.chart")].map((figure) => new Chart(figure));
      for (const chart of charts) {
        chart.drawings.forEach((drawing, i) => {
          const kept = (saved.get(chart.figure.id) || [])[i];
          if (!kept) return;
          if (kept.zoom) drawing.zoomTo(...kept.zoom);
          if (kept.x !== null && chart.shown === drawing) drawing.show(nearest(drawing.longest.xs[drawing.view], kept.x));
        });
      }
    },
    save: () => new Map(charts.map((chart) => [chart.figure.id, chart.drawings.map((drawing) => ({
      zoom: drawing.zoom, x: drawing.at >= 0 ? drawing.longest.xs[drawing.view][drawing.at] : null,
    }))])),
    isBusy: () => charts.some((chart) => chart.isDragged),
  };
  api.start();
  return api;
})();
