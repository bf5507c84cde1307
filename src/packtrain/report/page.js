// Shows the values under the pointer, or under the arrow keys if a chart has the focus. The page works without it.
(() => {
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
  const nearest = (xs, x) => {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (xs[middle] < x) low = middle; else high = middle;
    }
    return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
  };
  for (const figure of document.querySelectorAll("figure.chart")) {
    const data = JSON.parse(figure.querySelector("script").textContent);
    const tip = document.createElement("div");
    tip.className = "tip";
    tip.hidden = true;
    figure.append(tip);
    for (const svg of figure.querySelectorAll(".plot > svg")) {
      // The browser would show the title as a second, slower tooltip.
      const title = svg.querySelector("title");
      svg.setAttribute("aria-label", title.textContent);
      svg.setAttribute("aria-describedby", svg.querySelector("desc").id);
      svg.removeAttribute("aria-labelledby");
      title.remove();
      svg.setAttribute("tabindex", "0");
      const view = Number(svg.dataset.view);
      const [x0, x1] = svg.dataset.x.split(",").map(Number);
      const longest = data.series.reduce((a, b) => (b.ys.length > a.ys.length ? b : a));
      const cursor = document.createElementNS(svg.namespaceURI, "line");
      cursor.setAttribute("class", "cursor");
      cursor.setAttribute("y1", "0");
      cursor.setAttribute("y2", "100%");
      let at = -1;
      const hide = () => { tip.hidden = true; cursor.remove(); at = -1; };
      const show = (index) => {
        at = Math.max(0, Math.min(longest.ys.length - 1, index));
        const x = longest.xs[view][at];
        const share = (x - x0) / (x1 - x0);
        cursor.setAttribute("x1", `${100 * share}%`);
        cursor.setAttribute("x2", `${100 * share}%`);
        svg.append(cursor);
        const head = document.createElement("b");
        head.textContent = `${plain.format(Math.round(x))} ${data.views[view]}`;
        tip.replaceChildren(head);
        const reach = (x1 - x0) / 40;
        for (const series of data.series) {
          const j = nearest(series.xs[view], x);
          if (Math.abs(series.xs[view][j] - x) > reach) continue;
          const y = series.ys[j];
          const row = document.createElement("div");
          const dot = document.createElement("i");
          dot.className = `c${series.colour}`;
          row.append(dot, `${series.name}: ${y === null ? "not finite" : write[data.number](y)}`);
          tip.append(row);
        }
        tip.hidden = false;
        const frame = figure.getBoundingClientRect(), box = svg.getBoundingClientRect();
        const left = box.left - frame.left + share * box.width;
        const over = left + tip.offsetWidth + 14 > frame.width;
        tip.style.left = `${Math.max(0, over ? left - tip.offsetWidth - 12 : left + 12)}px`;
        tip.style.top = `${box.top - frame.top + 8}px`;
      };
      svg.addEventListener("pointermove", (event) => {
        const box = svg.getBoundingClientRect();
        show(nearest(longest.xs[view], x0 + ((event.clientX - box.left) / box.width) * (x1 - x0)));
      });
      svg.addEventListener("pointerleave", hide);
      svg.addEventListener("blur", hide);
      svg.addEventListener("keydown", (event) => {
        const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (!by) return;
        event.preventDefault();
        show(at < 0 ? longest.ys.length - 1 : at + by);
      });
    }
  }
})();
