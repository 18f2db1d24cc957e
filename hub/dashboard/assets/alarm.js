"use strict";
// One time cursor over the pictures, the sound with its spectrogram, and the series of a recording.
Object.assign(window.lineside, (() => {
  const THUMBS = 10, SVG = "http://www.w3.org/2000/svg";

  function make(tag, classes, more = {}) {
    return Object.assign(document.createElement(tag), { className: classes, ...more });
  }

  const filled = (text, values) => text.replace(/\{(\w+)\}/g, (_, name) => values[name]);

  function marked(box, told) {
    for (const [name, at] of Object.entries(told.marks)) {
      if (at < 0 || at > told.seconds) continue;
      const mark = make("div", "l-mark", { title: name });
      mark.style.left = `${100 * at / told.seconds}%`;
      mark.append(make("span", "", { textContent: name }));
      box.append(mark);
    }
    const cursor = make("div", "l-cursor");
    box.append(cursor);
    return (at) => { cursor.style.left = `${100 * at / told.seconds}%`; };
  }

  function seekable(box, told, seek) {
    const to = (event) => {
      const place = box.getBoundingClientRect();
      seek(told.seconds * Math.min(1, Math.max(0, (event.clientX - place.left) / place.width)));
    };
    box.addEventListener("pointerdown", to);
    box.addEventListener("pointermove", (event) => { if (event.buttons) to(event); });
  }

  function camera(one, told, seek) {
    const box = make("figure", "l-camera"), last = one.stamps.length - 1;
    const address = (n) => `${told.base}${one.name}-${String(n).padStart(4, "0")}.jpg`;
    const large = make("img", "l-shot"), caption = make("figcaption", "l-soft"), strip = make("div", "l-strip");
    const count = Math.min(THUMBS, last + 1);
    const thumbs = Array.from({ length: count }, (_, k) => {
      const n = Math.round(k * last / Math.max(1, count - 1));
      const thumb = make("button", "l-thumb", { type: "button" });
      thumb.setAttribute("aria-label", filled(told.words.picture, { sensor: one.name, time: one.stamps[n].toFixed(1) }));
      thumb.append(make("img", "", { src: address(n), alt: "", loading: "lazy" }));
      thumb.addEventListener("click", () => seek(one.stamps[n]));
      strip.append(thumb);
      return [n, thumb];
    });
    box.append(large, caption, strip);
    let shown = -1;
    const show = (at) => {
      let n = 0;
      while (n < last && one.stamps[n + 1] <= at + 0.001) n += 1;
      if (n === shown) return;
      shown = n;
      large.src = address(n);
      large.alt = caption.textContent = filled(told.words.picture, { sensor: one.name, time: one.stamps[n].toFixed(1) });
      const nearest = thumbs.reduce((a, b) => (Math.abs(b[0] - n) < Math.abs(a[0] - n) ? b : a));
      thumbs.forEach(([, thumb]) => thumb.classList.toggle("here", thumb === nearest[1]));
    };
    return { box, show };
  }

  function sound(one, told, seek) {
    const box = make("figure", "l-sound"), heard = make("div", "l-spectrogram");
    const words = filled(told.words.spectrogram, { sensor: one.name, khz: one.khz });
    const drawn = make("img", "", { src: `${told.base}${one.name}.png`, alt: words, draggable: false });
    const player = make("audio", "", { controls: true, preload: "metadata", src: `${told.base}${one.name}.wav` });
    player.setAttribute("aria-label", one.name);
    heard.append(drawn);
    box.append(make("figcaption", "l-soft", { textContent: words }), heard, player);
    const show = marked(heard, told);
    seekable(heard, told, seek);
    const follow = () => {
      seek(player.currentTime, player);
      if (!player.paused) requestAnimationFrame(follow);
    };
    player.addEventListener("play", follow);
    player.addEventListener("seeked", () => { if (player.paused) seek(player.currentTime, player); });
    return { box, show, player };
  }

  function series(one, told, seek) {
    const box = make("figure", "l-series"), drawn = make("div", "l-plot"), svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `0 0 ${told.seconds} 100`);
    svg.setAttribute("preserveAspectRatio", "none");
    const every = one.values.flat().filter((value) => value !== null);
    const low = Math.min(...every), high = Math.max(...every), span = high - low || 1;
    one.values.forEach((values, channel) => {
      const line = document.createElementNS(SVG, "polyline");
      const points = values.map((v, k) => (v === null ? "" : `${one.seconds[k]},${96 - 92 * (v - low) / span}`));
      line.setAttribute("points", points.filter(Boolean).join(" "));
      line.setAttribute("class", `l-line-${channel}`);
      svg.append(line);
    });
    drawn.append(svg);
    const words = filled(told.words.series, { sensor: one.name });
    const range = every.length ? `${low.toPrecision(3)} … ${high.toPrecision(3)}` : "–";
    box.append(make("figcaption", "l-soft", { textContent: `${words}: ${range}` }), drawn);
    seekable(drawn, told, seek);
    return { box, show: marked(drawn, told) };
  }

  function timeline(told, seek) {
    const box = make("div", "l-time"), text = make("output", "l-mono");
    const slider = make("input", "", { type: "range", min: 0, max: told.seconds, step: 0.02 });
    slider.setAttribute("aria-label", told.words.time);
    slider.addEventListener("input", () => seek(Number(slider.value)));
    box.append(slider, text);
    const show = (at) => {
      slider.value = at;
      text.textContent = `${at.toFixed(1)} / ${told.seconds.toFixed(1)} s`;
    };
    return { box, show };
  }

  function silentPlayer(told, now, seek) {
    const button = make("button", "l-button l-outline", { type: "button", textContent: told.words.play });
    let before = null;
    const step = (time) => {
      if (before === null) return;
      const at = now() + (time - before) / 1000;
      before = time;
      seek(Math.min(at, told.seconds));
      if (at < told.seconds) return requestAnimationFrame(step);
      toggle();
    };
    const toggle = () => {
      before = before === null ? performance.now() : null;
      button.textContent = before === null ? told.words.play : told.words.pause;
      if (before !== null) requestAnimationFrame(step);
    };
    button.addEventListener("click", toggle);
    return { box: button, show: () => {} };
  }

  function evidence(told) {
    const root = getHtmlElement(told.id);
    if (!root) return setTimeout(() => evidence(told), 100);
    let at = 0;
    const tracks = [];
    const seek = (to, from = null) => {
      at = Math.min(Math.max(0, to), told.seconds);
      for (const track of tracks) {
        track.show(at);
        if (track.player && track.player !== from && Math.abs(track.player.currentTime - at) > 0.15) {
          track.player.currentTime = at;
        }
      }
    };
    tracks.push(
      ...told.cameras.map((one) => camera(one, told, seek)),
      timeline(told, seek),
      ...told.sounds.map((one) => sound(one, told, seek)),
      ...told.series.map((one) => series(one, told, seek)),
    );
    if (!told.sounds.length) tracks.push(silentPlayer(told, () => at, seek));
    root.replaceChildren(...tracks.map((track) => track.box));
    seek(told.at);
    return undefined;
  }

  return { evidence };
})());
