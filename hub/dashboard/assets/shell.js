"use strict";
// Tells when the hub is not heard: the page sends its clock every second, so a silence means that what it shows is old.
window.lineside = (() => {
  const SILENT_MS = 5000, CHECK_MS = 500, BACK_MS = 6000;
  let heard = Date.now(), wasConnected = false, lost = false;

  function banner(text, tone) {
    document.getElementById("l-connection")?.remove();
    const made = document.createElement("div");
    made.id = "l-connection";
    made.className = `tone-${tone}`;
    made.setAttribute("role", "alert");
    made.textContent = text;
    document.body.append(made);
    return made;
  }

  function listen(socket) {
    if (socket.isWatched) return;
    socket.isWatched = true;
    socket.onAny(() => { heard = Date.now(); });
  }

  function check(told) {
    const socket = window.socket;
    if (socket) listen(socket);
    wasConnected ||= Boolean(socket?.connected);
    const away = (wasConnected && !socket.connected) || Date.now() - heard > SILENT_MS;
    if (away === lost) return;
    lost = away;
    document.body.classList.toggle("l-lost", lost);
    const time = document.querySelector(".l-clock")?.textContent ?? "";
    if (lost) return banner(told.lost.replace("{time}", time), "bad");
    const back = banner(told.back, "good");
    setTimeout(() => back.remove(), BACK_MS);
  }

  function watch(told) {
    setInterval(() => check(told), CHECK_MS);
  }

  return { watch };
})();
