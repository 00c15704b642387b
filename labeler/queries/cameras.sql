-- label quality by camera: how many parts have a box, how large it is and how sure the engine was
select label_run, dataset, camera, part, count(*) as labels,
    round(100.0 * count(*) filter (status = 'ok') / count(*), 2) as ok_percent,
    round(100.0 * count(*) filter (status = 'absent') / count(*), 2) as absent_percent,
    round(avg(rel_area), 4) as mean_rel_area,
    round(avg(score), 4) as mean_score
from parts
group by all
order by all
