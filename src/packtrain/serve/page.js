// The page of `packtrain serve`: asks the model of the server that it came from, and shows its text token by token.
(() => {
  const at = (id) => document.getElementById(id);
  const NUMBERS = ["temperature", "top_p", "min_p", "top_k", "repetition_penalty", "presence_penalty", "frequency_penalty", "max_tokens"];
  const NUM_ALTERNATIVES = 8, FACTS_MS = 5000, CURVES_MS = 10000;
  const SHADES = [0.5, 0.2, 0.05];
  const prompt = at("prompt"), text = at("text"), status = at("status"), detail = at("detail");
  let token = "", running = null, tokens = [], shown = -1, step = null, base = "";

  const headers = (more = {}) => (token ? { Authorization: `Bearer ${token}`, ...more } : more);
  const percent = (logprob) => {
    if (logprob === null) return "–";
    const share = 100 * Math.exp(logprob);
    return share >= 0.1 ? `${share.toFixed(1)} %` : share >= 0.0001 ? `${Number(share.toPrecision(1))} %` : "< 0.0001 %";
  };
  // A token with its hidden characters made visible.
  const HIDDEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;
  const escape = (sign) => `\\u${sign.charCodeAt(0).toString(16).padStart(4, "0")}`;
  const visible = (words) =>
    words.replace(/ /g, "␣").replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(HIDDEN, escape) || "(nothing)";
  const fail = (sentence) => {
    at("fault").textContent = sentence;
    at("fault").hidden = !sentence;
  };
  const explain = async (answer) => {
    if (answer.status === 401) {
      at("key").hidden = false;
      at("token").focus();
    }
    try { return (await answer.json()).error.message; } catch { return `The server answered with status ${answer.status}.`; }
  };

  // What the model is.
  const showFacts = async () => {
    try {
      const answer = await fetch("v1/models", { headers: headers() });
      if (!answer.ok) { at("facts").textContent = await explain(answer); return; }
      at("key").hidden = true;
      const [model] = (await answer.json()).data;
      const size = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 4 }).format(model.parameters);
      const parts = [`${size} parameters`, `context of ${model.context_length.toLocaleString("en")} tokens`];
      if (model.step !== null) parts.unshift(`training step ${model.step.toLocaleString("en")}`);
      step = model.step;
      at("name").textContent = model.id;
      at("facts").textContent = parts.join(" · ");
      document.title = `${model.id} – packtrain serve`;
    } catch {
      at("facts").textContent = "The server does not answer; it may have ended.";
    }
  };

  // The run's curves, as the report draws them.
  let tag = null;
  const showCurves = async () => {
    if (document.body.dataset.curves !== "yes" || document.hidden || window.packtrainCharts.isBusy()) return;
    if (at("curves").contains(document.activeElement)) return;
    try {
      const answer = await fetch("page/curves", { headers: headers(tag ? { "If-None-Match": tag } : {}), cache: "no-store" });
      if (answer.status !== 200) return;
      tag = answer.headers.get("ETag");
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      const saved = window.packtrainCharts.save();
      const checked = [...document.querySelectorAll("#curves .switches input:checked")].map((i) => `${i.name} ${i.className}`);
      at("curves").replaceChildren(...fresh.body.childNodes);
      for (const input of document.querySelectorAll("#curves .switches input"))
        if (checked.includes(`${input.name} ${input.className}`)) input.checked = true;
      at("learned").hidden = !at("curves").childElementCount;
      window.packtrainCharts.start(saved);
    } catch { /* The facts say that the server does not answer. */ }
  };

  // One token or several that make a character together, with what else could have stood there.
  const addPiece = (choice) => {
    const found = choice.logprobs, words = choice.text;
    if (!found || (!words && !found.tokens.length)) return;
    const span = document.createElement("span");
    const parts = found.tokens.map((name, i) => ({ name, logprob: found.token_logprobs[i], best: (found.top_logprobs || [])[i] }));
    if (!parts.length) parts.push({ name: words, logprob: null, best: null });
    const least = Math.min(...parts.map((part) => (part.logprob === null ? 0 : Math.exp(part.logprob))));
    span.className = `tok s${SHADES.filter((limit) => least < limit).length}${words.startsWith("\n") ? " break" : ""}`;
    span.textContent = words;
    const number = tokens.length;
    tokens.push({ span, parts, start: base.length });
    base += words;
    span.addEventListener("pointerenter", () => show(number));
    span.addEventListener("click", () => show(number));
    text.append(span);
  };

  const show = (number, isSaid = false) => {
    tokens[shown]?.span.classList.remove("on");
    shown = number;
    const found = tokens[number];
    if (!found) { detail.hidden = true; return; }
    found.span.classList.add("on");
    detail.hidden = false;
    const names = found.parts.map((part) => visible(part.name)).join(" + ");
    at("detail-title").textContent = `Token ${number + 1} of ${tokens.length}: ${names}`;
    at("alternatives").replaceChildren(...found.parts.flatMap((part) => rowsOf(part, found)));
    if (isSaid) {
      at("detail-said").textContent = `${names}, ${found.parts.map((part) => percent(part.logprob)).join(", ")}`;
      found.span.scrollIntoView({ block: "nearest" });
    }
  };

  const rowsOf = (part, found) => {
    const rows = Object.entries(part.best || { [part.name]: part.logprob }).sort((a, b) => b[1] - a[1]);
    // Of tokens that make a character together, the first few say enough.
    if (found.parts.length > 1) rows.splice(3, rows.length, ...rows.slice(3).filter(([name]) => name === part.name));
    return rows.map(([name, logprob]) => {
      const row = document.createElement("tr"), head = document.createElement("th");
      const chance = document.createElement("td"), bar = document.createElement("td"), fill = document.createElement("i");
      head.scope = "row";
      head.className = "token";
      chance.className = "num";
      bar.className = "share";
      row.className = name === part.name ? "chosen" : "";
      // Half of a character cannot be put into a prompt.
      if (name === part.name || found.parts.length > 1 || name.startsWith("bytes:") || !name) head.textContent = visible(name);
      else {
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = visible(name);
        button.title = "Generate again from here";
        button.addEventListener("click", () => generate(base.slice(0, found.start) + name));
        head.append(button);
      }
      chance.textContent = percent(logprob);
      fill.style.width = logprob === null ? "0" : `${100 * Math.exp(logprob)}%`;
      bar.append(fill);
      row.append(head, chance, bar);
      return row;
    });
  };

  const settings = () => {
    const body = { stream: true, logprobs: NUM_ALTERNATIVES, stream_options: { include_usage: true } };
    for (const name of NUMBERS) {
      const value = at(name).valueAsNumber;
      if (Number.isFinite(value)) body[name] = value;
    }
    const seed = at("seed").valueAsNumber;
    // Drawn here, so that it can be shown and given again.
    body.seed = Number.isFinite(seed) ? seed : Math.floor(Math.random() * 2 ** 31);
    const stop = at("stops").value.replace(/\\n/g, "\n").replace(/\\t/g, "\t");
    if (stop) body.stop = [stop];
    return body;
  };

  async function* events(answer) {
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let held = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      held += value;
      const parts = held.split("\n\n");
      held = parts.pop();
      for (const part of parts) {
        if (!part.startsWith("data: ")) continue;
        if (part === "data: [DONE]") return;
        yield JSON.parse(part.slice(6));
      }
    }
  }

  const ENDS = { stop: "the text ended", length: "the limit of tokens or the end of the context was reached" };
  async function generate(given) {
    running?.abort();
    const mine = new AbortController(), body = settings(), began = performance.now();
    running = mine;
    tokens = [];
    base = given;
    show(-1);
    fail("");
    const echo = document.createElement("span");
    echo.className = "given";
    echo.textContent = given;
    text.replaceChildren(echo);
    text.setAttribute("aria-busy", "true");
    at("stop").disabled = false;
    at("more").disabled = true;
    let count = 0, finish = null, made = step;
    const tell = (how) => {
      const seconds = (performance.now() - began) / 1000, from = made === null ? "" : `, step ${made.toLocaleString("en")}`;
      status.textContent = `${count} token${count === 1 ? "" : "s"} in ${seconds.toFixed(1)} s${from}, seed ${body.seed}: ${how}`;
    };
    status.textContent = "Waiting for the first token …";
    try {
      const answer = await fetch("v1/completions", {
        method: "POST",
        headers: headers({ "Content-Type": "application/json" }),
        body: JSON.stringify({ ...body, prompt: given }),
        signal: mine.signal,
      });
      if (!answer.ok) throw new Error(await explain(answer));
      for await (const event of events(answer)) {
        if (event.error) throw new Error(event.error.message);
        made = event.step ?? made;
        for (const choice of event.choices) {
          addPiece(choice);
          finish = choice.finish_reason ?? finish;
        }
        count = event.usage?.completion_tokens ?? tokens.reduce((sum, each) => sum + each.parts.length, 0);
        if (finish === null) status.textContent = `${count} tokens …`;
      }
      tell(ENDS[finish] || "the answer was cut off");
    } catch (error) {
      if (running !== mine) return;
      if (error.name === "AbortError") tell("stopped");
      else {
        status.textContent = count ? `${count} tokens, and then an error.` : "Nothing generated.";
        fail(error.message);
      }
    } finally {
      if (running === mine) {
        running = null;
        at("stop").disabled = true;
        at("more").disabled = !tokens.length;
        text.removeAttribute("aria-busy");
      }
    }
  }

  const stop = () => {
    if (running === null) return;
    const hadFocus = document.activeElement === at("stop");
    running.abort();
    if (hadFocus) at("go").focus();
  };

  at("ask").addEventListener("submit", (event) => { event.preventDefault(); generate(prompt.value); });
  at("stop").addEventListener("click", stop);
  at("more").addEventListener("click", () => { prompt.value = base; generate(base); });
  at("key").addEventListener("submit", (event) => {
    event.preventDefault();
    token = at("token").value.trim();
    fail("");
    showFacts();
    showCurves();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") stop();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); at("ask").requestSubmit(); }
  });
  text.addEventListener("keydown", (event) => {
    const last = tokens.length - 1;
    const moves = { ArrowRight: shown + 1, ArrowLeft: shown < 0 ? last : shown - 1, Home: 0, End: last };
    if (!(event.key in moves) || last < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    show(Math.max(0, Math.min(last, moves[event.key])), true);
  });
  at("shade").addEventListener("change", () => text.classList.toggle("shaded", at("shade").checked));
  for (const output of document.querySelectorAll(".control output")) {
    const input = at(output.htmlFor.value), write = () => { output.textContent = Number(input.value).toFixed(2); };
    input.addEventListener("input", write);
    write();
  }
  at("base").textContent = new URL("v1", location.href).href;
  setInterval(() => { if (!document.hidden) showFacts(); }, FACTS_MS);
  setInterval(showCurves, CURVES_MS);
  showFacts();
  showCurves();
})();
