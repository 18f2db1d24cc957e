"use strict";
// The charts of a station. The page sends a span once and then what is new; the browser keeps the span and draws it.
Object.assign(window.lineside, (() => {
  let kept = new Map();

  // Where data is missing a line must break, not run on: it would show what nobody measured.
  function broken(points, gap, value) {
    const drawn = [];
    points.forEach((point, at) => {
      if (at && point[0] - points[at - 1][0] > gap) drawn.push([points[at - 1][0] + gap / 2, null]);
      drawn.push([point[0], value(point) ?? null]);
    });
    return drawn;
  }

  function line(name, colour, data, more = {}) {
    return { id: name, name, type: "line", symbol: "none", data, lineStyle: { width: 2, color: colour },
      itemStyle: { color: colour }, ...more };
  }

  function merge(news) {
    if (news.fresh) kept = new Map();
    for (const point of news.points) {
      const had = kept.get(point[0]);
      if (!had || point[1] >= had[1]) kept.set(point[0], point);
    }
    const begin = news.now - news.span;
    for (const ms of kept.keys()) if (ms < begin - news.step) kept.delete(ms);
    return [...kept.values()].sort((a, b) => a[0] - b[0]);
  }

  function draw(chart, news, series) {
    const soft = getComputedStyle(document.body).getPropertyValue("--soft").trim();
    const axis = { axisLabel: { color: soft } };
    chart.setOption(
      {
        xAxis: { ...axis, min: news.now - news.span, max: news.now }, yAxis: axis,
        legend: { textStyle: { color: soft }, data: series.map((one) => one.name) }, series,
      },
      { replaceMerge: ["series"] },
    );
  }

  function course(news) {
    const charts = news.charts.map((id) => getElement(id)?.chart);
    if (charts.some((chart) => !chart)) return void setTimeout(() => course(news), 100);
    const points = merge(news);
    const gap = Math.max(3 * news.step, 5000);
    const [score, limit, beyond] = news.words;
    const [blue, red] = news.colours;
    draw(charts[0], news, [
      line(score, blue, broken(points, gap, (p) => p[1])),
      line(limit, red, broken(points, gap, (p) => p[2]), { step: "end", lineStyle: { width: 2, type: "dashed", color: red } }),
      { id: beyond, name: beyond, type: "scatter", symbol: "diamond", symbolSize: 9, itemStyle: { color: red },
        data: points.filter((p) => p[2] !== null && p[1] >= p[2]).map((p) => [p[0], p[1]]) },
    ]);
    const area = (colour) => ({ stack: "share", step: "end", lineStyle: { width: 0 }, areaStyle: { color: colour, opacity: 0.85 } });
    draw(charts[1], news, Object.entries(news.sensors).map(([name, colour]) =>
      line(name, colour, broken(points, gap, (p) => Math.max(0, p[3][name] ?? 0)), area(colour))));
    const pairs = new Set(points.flatMap((p) => Object.keys(p[4])));
    draw(charts[2], news, [...pairs].sort().map((name, at) =>
      line(name, news.pairColours[at % news.pairColours.length], broken(points, gap, (p) => p[4][name]),
        { lineStyle: { width: 2, type: ["solid", "dashed", "dotted"][at % 3], color: news.pairColours[at % news.pairColours.length] } })));
    document.body.dataset.drawn = `${news.span}:${points.length}`;
  }

  return { course };
})());
