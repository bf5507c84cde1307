// What a page may not have, each check as a function that lists what it finds.
({
  // What is cut off: text or controls outside of the window, unless a box around them scrolls; text wider than its box.
  findCut: () => {
    const found = [];
    const scrolls = (e) => { for (; e; e = e.parentElement) if (e.matches('.wide, pre, .said')) return true; return false; };
    for (const e of document.querySelectorAll('h1,h2,h3,h4,p,li,dt,dd,td,th,summary,button,label span,svg text')) {
      if (scrolls(e) || !e.textContent.trim() || !e.getClientRects().length) continue;
      const r = e.getBoundingClientRect();
      if (r.left < -0.5 || r.right > innerWidth + 0.5) found.push([e.nodeName, e.textContent.slice(0, 40), r.left, r.right]);
      if (e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflow !== 'visible') found.push(['inner', e.textContent.slice(0, 40)]);
    }
    if (document.documentElement.scrollWidth > innerWidth) found.push(['page', document.documentElement.scrollWidth]);
    return found;
  },
  // What is cut off: text or controls outside of the window, unless a box around them scrolls; text wider than its box.
  //FIND_CUT = """() => {
  // const found = [];
  // const scrolls = (e) => { for (; e; e = e.parentElement) if (e.matches('.wide, pre, .said')) return true; return false; };
  // for (const e of document.querySelectorAll('h1,h2,h3,h4,p,li,dt,dd,td,th,summary,button,label span,svg text')) {
  //   if (scrolls(e) || !e.textContent.trim() || !e.getClientRects().length) continue;
  //   const r = e.getBoundingClientRect();
  //   if (r.left < -0.5 || r.right > innerWidth + 0.5) found.push([e.nodeName, e.textContent.slice(0, 40), r.left, r.right]);
  //   if (e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflow !== 'visible') found.push(['inner', e.textContent.slice(0, 40)]);
  // }
  // if (document.documentElement.scrollWidth > innerWidth) found.push(['page', document.documentElement.scrollWidth]);
  // return found;
  //"""
  // Text whose contrast with what is behind it is under WCAG's 4.5 (3 for large text).
  findFaint: () => {
    const numbers = (c) => { const m = c.match(/[\d.]+/g).map(Number); return m.length > 3 ? m : [...m, 1]; };
    const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)).reduce((s, v, i) => s + v * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = (e) => { for (; e; e = e.parentElement) { const c = numbers(getComputedStyle(e).backgroundColor); if (c[3] === 1) return c; } return [255, 255, 255, 1]; };
    const found = new Map();
    for (const e of document.querySelectorAll('body *')) {
      if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || !e.getClientRects().length || e.matches('script, style, .said, legend')) continue;
      const style = getComputedStyle(e), ink = light(numbers(e.namespaceURI.endsWith('svg') ? style.fill : style.color)), paper = light(behind(e));
      const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05), size = parseFloat(style.fontSize);
      if (ratio < (size >= 24 || (size >= 18.7 && style.fontWeight >= 600) ? 3 : 4.5)) found.set(`${e.nodeName}.${e.className.baseVal ?? e.className}`, [ratio, e.textContent.slice(0, 30)]);
    }
    return [...found];
  },
  // What is cut off: text or controls outside of the window, unless a box around them scrolls; text wider than its box.
  //FIND_CUT = """() => {
  // const found = [];
  // const scrolls = (e) => { for (; e; e = e.parentElement) if (e.matches('.wide, pre, .said')) return true; return false; };
  // for (const e of document.querySelectorAll('h1,h2,h3,h4,p,li,dt,dd,td,th,summary,button,label span,svg text')) {
  //   if (scrolls(e) || !e.textContent.trim() || !e.getClientRects().length) continue;
  //   const r = e.getBoundingClientRect();
  //   if (r.left < -0.5 || r.right > innerWidth + 0.5) found.push([e.nodeName, e.textContent.slice(0, 40), r.left, r.right]);
  //   if (e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflow !== 'visible') found.push(['inner', e.textContent.slice(0, 40)]);
  // }
  // if (document.documentElement.scrollWidth > innerWidth) found.push(['page', document.documentElement.scrollWidth]);
  // return found;
  //"""
  // Text whose contrast with what is behind it is under WCAG's 4.5 (3 for large text).
  //FIND_FAINT = """() => {
  // const numbers = (c) => { const m = c.match(/[\\d.]+/g).map(Number); return m.length > 3 ? m : [...m, 1]; };
  // const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
  //   .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)).reduce((s, v, i) => s + v * [0.2126, 0.7152, 0.0722][i], 0);
  // const behind = (e) => { for (; e; e = e.parentElement) { const c = numbers(getComputedStyle(e).backgroundColor); if (c[3] === 1) return c; } return [255, 255, 255, 1]; };
  // const found = new Map();
  // for (const e of document.querySelectorAll('body *')) {
  //   if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || !e.getClientRects().length || e.matches('script, style, .said, legend')) continue;
  //   const style = getComputedStyle(e), ink = light(numbers(e.namespaceURI.endsWith('svg') ? style.fill : style.color)), paper = light(behind(e));
  //   const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05), size = parseFloat(style.fontSize);
  //   if (ratio < (size >= 24 || (size >= 18.7 && style.fontWeight >= 600) ? 3 : 4.5)) found.set(`${e.nodeName}.${e.className.baseVal ?? e.className}`, [ratio, e.textContent.slice(0, 30)]);
  // }
  // return [...found];
  //"""
  // Controls and pictures without a name, ids that repeat, headings that skip a level, tables without headings.
  findUnnamed: () => {
    const found = [];
    for (const e of document.querySelectorAll('button, input, svg[role=img], [role=region], [role=application], nav'))
      if (!(e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.labels?.[0]?.textContent || e.closest('label')?.textContent || e.textContent).trim()) found.push(e.outerHTML.slice(0, 80));
    const ids = [...document.querySelectorAll('[id]')].map((e) => e.id);
    for (const id of ids) if (ids.filter((other) => other === id).length > 1) found.push(`id ${id} repeats`);
    for (const e of document.querySelectorAll('[aria-describedby]')) if (!document.getElementById(e.getAttribute('aria-describedby'))) found.push(`no ${e.getAttribute('aria-describedby')}`);
    for (const t of document.querySelectorAll('table')) if (!t.querySelector('th')) found.push('a table without headings');
    if (!document.documentElement.lang || !document.title) found.push('no language or title');
    return found;
  },
})
