// Follows a run: asks the server for a newer page, and puts what changed in place. What the reader has set stays.
(() => {
  const FAST_MS = 2000, SLOW_MS = 15000;
  let tag = null, wait = FAST_MS, stopped = false;
  const state = document.createElement("p");
  state.className = "live";
  state.setAttribute("role", "status");
  document.querySelector("header").prepend(state);
  const say = (text, isOld) => {
    if (state.textContent !== text) state.textContent = text;
    state.classList.toggle("old", isOld);
  };
  const time = () => new Date().toLocaleTimeString("en-GB");
  say("Live", false);

  // Switches and open parts by their place on the page, as most have no name.
  const settings = (root) => ({
    checked: new Set([...root.querySelectorAll("input:checked")].map((i) => `${i.name} ${i.className}`)),
    open: new Set([...root.querySelectorAll("details[open]")].map((d) => pathOf(d))),
    scrolled: [...root.querySelectorAll(".wide, pre")].filter((e) => e.scrollLeft || e.scrollTop)
      .map((e) => [pathOf(e), e.scrollLeft, e.scrollTop]),
  });
  const pathOf = (node) => {
    const section = node.closest("[id]") || document.body;
    const like = [...section.querySelectorAll(node.tagName)];
    return `${section.id} ${node.tagName} ${like.indexOf(node)}`;
  };
  const restore = (kept) => {
    for (const input of document.querySelectorAll(".switches input"))
      if (kept.checked.has(`${input.name} ${input.className}`)) input.checked = true;
    for (const details of document.querySelectorAll("details")) if (kept.open.has(pathOf(details))) details.open = true;
    const where = new Map(kept.scrolled.map(([path, left, top]) => [path, [left, top]]));
    for (const box of document.querySelectorAll(".wide, pre")) {
      const at = where.get(pathOf(box));
      if (at) [box.scrollLeft, box.scrollTop] = at;
    }
  };
  const replace = (text) => {
    const fresh = new DOMParser().parseFromString(text, "text/html");
    const left = window.scrollX, top = window.scrollY, kept = settings(document);
    const focused = document.activeElement, focus = focused && focused !== document.body ? pathOf(focused) : null;
    const charts = window.packtrainCharts.save();
    document.title = fresh.title;
    for (const name of ["main", "footer"]) document.querySelector(name).replaceWith(fresh.querySelector(name));
    const header = fresh.querySelector("header");
    header.prepend(state);
    document.querySelector("header").replaceWith(header);
    restore(kept);
    window.packtrainCharts.start(charts);
    if (focus) {
      const tagName = focus.split(" ").at(-2);
      const again = [...document.querySelectorAll(tagName)].find((node) => pathOf(node) === focus);
      if (again) again.focus({ preventScroll: true });
    }
    window.scrollTo({ left, top, behavior: "instant" });
  };
  const ask = async () => {
    // Nobody looks at a hidden page, and a reader who holds a drag would lose it.
    if (!document.hidden && !window.packtrainCharts.isBusy() && String(getSelection()) === "") {
      try {
        const answer = await fetch("/", { headers: tag ? { "If-None-Match": tag } : {}, cache: "no-store" });
        if (answer.status === 200) {
          tag = answer.headers.get("ETag");
          replace(await answer.text());
          wait = FAST_MS;
          say(`Live · as of ${time()}`, false);
        } else if (answer.status === 304) {
          wait = Math.min(SLOW_MS, wait * 1.25);
        } else {
          say(`Not refreshed since: ${await answer.text()}`, true);
          wait = SLOW_MS;
        }
      } catch (error) {
        say("The server has ended; this is the page as it last was.", true);
        wait = SLOW_MS;
      }
    }
    setTimeout(ask, wait);
  };
  document.addEventListener("visibilitychange", () => { if (!document.hidden) wait = FAST_MS; });
  setTimeout(ask, wait);
})();
